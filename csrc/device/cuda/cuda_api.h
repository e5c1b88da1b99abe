// The CUDA runtime as Prophet uses it: one table of C functions, no CUDA header.
//
// The table comes from a library of its own, opened at run time (cuda_library.h): built by nvcc for
// a real device, or from the same sources over an emulated runtime for tests. Both export
// `prophet_cuda_api`. Streams, events and graphs are opaque addresses; a stream's is CUDA's own
// handle, so that torch.cuda.Stream.cuda_stream can be handed in. Device addresses are plain
// pointers that the host must not follow.
//
// Every function that returns int returns 0 or the number of a cudaError_t; `error_name` and
// `error_text` put it in words. An error of a kernel or of the device itself ("sticky") comes back
// from every later call. Results are written only on success.
//
// Thread-safety: all functions may be called from any thread. The device is a property of the
// calling thread (`use_device`, 0 at first): allocate, pin, register_host, stream_create and
// event_create act on it; other calls follow the device of their stream.
#pragma once

#include <cstddef>
#include <cstdint>

namespace prophet {

constexpr std::uint32_t kCudaApiVersion = 1;

// Numbers of cudaError_t that callers tell apart.
constexpr int kCudaSuccess = 0;
constexpr int kCudaInvalidValue = 1;
constexpr int kCudaOutOfMemory = 2;
constexpr int kCudaDriverTooOld = 35;
constexpr int kCudaNoDevice = 100;
constexpr int kCudaNoKernelImage = 209;  // built for other architectures
constexpr int kCudaNotReady = 600;       // not an error: event_query, stream_query
constexpr int kCudaAlreadyRegistered = 712;
constexpr int kCudaLaunchFailure = 719;
constexpr int kCudaNotSupported = 801;

enum class CudaCopy : std::int32_t { to_device = 1, to_host = 2, on_device = 3 };
enum class CudaMemory : std::int32_t { pageable = 0, pinned = 1, device = 2, managed = 3 };

struct CudaDeviceInfo {
  char name[256];
  char pci_bus_id[32];        // "0000:3b:00.0"
  std::int32_t major, minor;  // compute capability
  std::int32_t multiprocessors;
  std::int32_t copy_engines;         // 2: both directions at once
  std::int32_t can_map_host;         // 1: kernels reach pinned memory
  std::int32_t driver_version;       // 13000: supports CUDA 13.0; 0: no driver
  std::int32_t runtime_version;      // of the library
  std::int32_t usable;               // 0, or why kernels of the library cannot run: 209
  std::int32_t emulated;             // 1: no device at all, see tests/cuda_emulation
  std::uint64_t memory_total;        // bytes
  std::uint64_t memory_free;         // bytes, at the time of asking
  std::uint64_t shared_memory_most;  // bytes a block may opt in to
};

struct CudaApi {
  std::uint32_t version;  // kCudaApiVersion
  std::uint32_t size;     // sizeof(CudaApi)

  const char* (*error_name)(int code);  // "cudaErrorMemoryAllocation"; never null
  const char* (*error_text)(int code);

  // 0 devices come with an error: kCudaNoDevice, or kCudaDriverTooOld (also for no driver at all).
  int (*device_count)(int* count);
  int (*versions)(int* driver, int* runtime);  // driver 0: none installed
  int (*device_info)(int device, CudaDeviceInfo* info);
  int (*use_device)(int device);  // of this thread
  int (*device_synchronize)();

  // Device memory, aligned to at least 256. release waits for all work of the device.
  int (*allocate)(std::size_t bytes, void** device_memory);
  int (*release)(void* device_memory);
  int (*memory_info)(std::size_t* free, std::size_t* total);  // of this thread's device

  // Page-locked, mapped and portable host memory: lanes copy from it without staging, and kernels
  // reach it under device_address(host). register_host does the same to memory that exists (whole
  // pages); an operating system may refuse it.
  int (*pin)(std::size_t bytes, void** host_memory);
  int (*unpin)(void* host_memory);
  int (*register_host)(void* host_memory, std::size_t bytes);
  int (*unregister_host)(void* host_memory);
  int (*device_address)(void* host_memory, void** device_view);
  // What an address is, and the device it belongs to (-1: pageable).
  int (*memory_kind)(const void* address, CudaMemory* kind, int* device);

  // Streams never wait for the default stream. priority 0 is the most urgent; larger is less so,
  // clamped to what the device offers (priorities: how many, 1 or more).
  int (*priorities)(int* count);
  int (*stream_create)(int priority, void** stream);
  int (*stream_destroy)(void* stream);              // queued work is still done
  int (*stream_device)(void* stream, int* device);  // kCudaNotSupported by toolkits before 12.8
  int (*stream_wait_event)(void* stream, void* event);
  int (*stream_query)(void* stream);  // 0: idle; kCudaNotReady
  int (*stream_synchronize)(void* stream);

  // An event that was never recorded counts as done. Elapsed: milliseconds between two timing ones.
  int (*event_create)(int timing, void** event);
  int (*event_destroy)(void* event);
  int (*event_record)(void* event, void* stream);
  int (*event_query)(void* event);  // 0: done; kCudaNotReady
  int (*event_synchronize)(void* event);
  int (*event_elapsed)(void* first, void* last, float* milliseconds);

  // Queued, in stream order. Pageable host memory is staged: copy_async may then wait.
  int (*copy_async)(void* to, const void* from, std::size_t bytes, CudaCopy kind, void* stream);
  int (*fill_async)(void* device_memory, int byte, std::size_t bytes, void* stream);

  // What a stream is given between begin and end is kept, not done; graph_launch queues it all.
  // Meanwhile the calling thread may make no call that waits, allocates or frees.
  int (*begin_capture)(void* stream);
  int (*end_capture)(void* stream, void** graph);
  int (*graph_launch)(void* graph, void* stream);
  int (*graph_destroy)(void* graph);

  // Calls through this table since it was loaded that made the host wait for the device, or may
  // have: synchronize, release, unpin, unregister_host, copies to or from pageable memory.
  std::uint64_t (*synchronising_calls)();
};

}  // namespace prophet

// What a library exports.
extern "C" const prophet::CudaApi* prophet_cuda_api();
