// The table of cuda_api.h over the CUDA runtime; compiled by the host compiler.
//
// An error that one call reports is also CUDA's "last error" until somebody asks; it is asked for
// here, so that it is not taken for the next kernel launch's.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "device/cuda/cuda_api.h"
#include "device/cuda/kernel_image_cuda.h"

namespace prophet {
namespace {

// Counted here, below every caller, so that a device counts as the emulation does.
std::atomic<std::uint64_t> synchronising{0};

int checked(cudaError_t error) {
  if (error != cudaSuccess) (void)cudaGetLastError();
  return static_cast<int>(error);
}

int waited(cudaError_t error) {
  synchronising.fetch_add(1, std::memory_order_relaxed);
  return checked(error);
}

cudaStream_t as_stream(void* stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t as_event(void* event) { return static_cast<cudaEvent_t>(event); }

const char* error_name(int code) { return cudaGetErrorName(static_cast<cudaError_t>(code)); }
const char* error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

int device_count(int* count) {
  int found = 0;
  const cudaError_t error = cudaGetDeviceCount(&found);
  if (error == cudaSuccess) *count = found;
  return checked(error);
}

int versions(int* driver, int* runtime) {
  int ours = 0;
  if (const int error = checked(cudaRuntimeGetVersion(&ours))) return error;
  int theirs = 0;
  if (const int error = checked(cudaDriverGetVersion(&theirs))) return error;
  *driver = theirs;
  *runtime = ours;
  return kCudaSuccess;
}

// Makes a device this thread's for a while.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    error_ = checked(cudaGetDevice(&before_));
    if (!error_) error_ = checked(cudaSetDevice(device));
  }
  ~OnDevice() {
    if (!error_) (void)checked(cudaSetDevice(before_));
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  int error() const { return error_; }

 private:
  int before_ = 0;
  int error_ = 0;
};

int attribute(int device, cudaDeviceAttr which, std::int32_t* value) {
  int found = 0;
  const int error = checked(cudaDeviceGetAttribute(&found, which, device));
  if (!error) *value = found;
  return error;
}

int memory_info(std::size_t* free, std::size_t* total) {
  return checked(cudaMemGetInfo(free, total));
}

int device_info(int device, CudaDeviceInfo* info) {
  CudaDeviceInfo found{};
  const OnDevice here(device);
  int error = here.error();
  cudaDeviceProp properties{};
  if (!error) error = checked(cudaGetDeviceProperties(&properties, device));
  if (error) return error;
  std::memcpy(found.name, properties.name, sizeof(found.name) - 1);
  std::int32_t shared = 0;
  const std::pair<cudaDeviceAttr, std::int32_t*> attributes[] = {
      {cudaDevAttrComputeCapabilityMajor, &found.major},
      {cudaDevAttrComputeCapabilityMinor, &found.minor},
      {cudaDevAttrMultiProcessorCount, &found.multiprocessors},
      {cudaDevAttrAsyncEngineCount, &found.copy_engines},
      {cudaDevAttrCanMapHostMemory, &found.can_map_host},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared},
  };
  for (const auto& [which, value] : attributes)
    if ((error = attribute(device, which, value))) return error;
  found.shared_memory_most = static_cast<std::uint64_t>(shared);
  if ((error =
           checked(cudaDeviceGetPCIBusId(found.pci_bus_id, sizeof(found.pci_bus_id), device))) ||
      (error = versions(&found.driver_version, &found.runtime_version)))
    return error;
  std::size_t free = 0, total = 0;
  if ((error = memory_info(&free, &total))) return error;
  found.memory_free = free;
  found.memory_total = total;
  cudaFuncAttributes image{};
  found.usable = checked(cudaFuncGetAttributes(&image, kernel_image()));
#ifdef PROPHET_CUDA_EMULATED
  found.emulated = 1;
#endif
  *info = found;
  return kCudaSuccess;
}

int use_device(int device) { return checked(cudaSetDevice(device)); }
int device_synchronize() { return waited(cudaDeviceSynchronize()); }

int allocate(std::size_t bytes, void** device_memory) {
  void* made = nullptr;
  const int error = checked(cudaMalloc(&made, bytes));
  if (!error) *device_memory = made;
  return error;
}
int release(void* device_memory) { return waited(cudaFree(device_memory)); }

int pin(std::size_t bytes, void** host_memory) {
  void* made = nullptr;
  const int error =
      checked(cudaHostAlloc(&made, bytes, cudaHostAllocMapped | cudaHostAllocPortable));
  if (!error) *host_memory = made;
  return error;
}
int unpin(void* host_memory) { return waited(cudaFreeHost(host_memory)); }
int register_host(void* host_memory, std::size_t bytes) {
  return checked(
      cudaHostRegister(host_memory, bytes, cudaHostRegisterMapped | cudaHostRegisterPortable));
}
int unregister_host(void* host_memory) { return waited(cudaHostUnregister(host_memory)); }
int device_address(void* host_memory, void** device_view) {
  return checked(cudaHostGetDevicePointer(device_view, host_memory, 0));
}

int memory_kind(const void* address, CudaMemory* kind, int* device) {
  cudaPointerAttributes attributes{};
  if (const int error = checked(cudaPointerGetAttributes(&attributes, address))) return error;
  *kind = static_cast<CudaMemory>(attributes.type);
  *device = attributes.type == cudaMemoryTypeUnregistered ? -1 : attributes.device;
  return kCudaSuccess;
}

int priorities(int* count) {
  int least = 0, greatest = 0;  // greatest is the smaller number
  const int error = checked(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  if (!error) *count = least - greatest + 1;
  return error;
}

int stream_create(int priority, void** stream) {
  int least = 0, greatest = 0;
  if (const int error = checked(cudaDeviceGetStreamPriorityRange(&least, &greatest))) return error;
  cudaStream_t made = nullptr;
  const int error = checked(cudaStreamCreateWithPriority(
      &made, cudaStreamNonBlocking, std::clamp(greatest + priority, greatest, least)));
  if (!error) *stream = made;
  return error;
}
int stream_destroy(void* stream) { return checked(cudaStreamDestroy(as_stream(stream))); }

int stream_device([[maybe_unused]] void* stream, [[maybe_unused]] int* device) {
#if CUDART_VERSION >= 12080
  return checked(cudaStreamGetDevice(as_stream(stream), device));
#else
  return kCudaNotSupported;
#endif
}

int stream_wait_event(void* stream, void* event) {
  return checked(cudaStreamWaitEvent(as_stream(stream), as_event(event), 0));
}
int stream_query(void* stream) { return checked(cudaStreamQuery(as_stream(stream))); }
int stream_synchronize(void* stream) { return waited(cudaStreamSynchronize(as_stream(stream))); }

int event_create(int timing, void** event) {
  cudaEvent_t made = nullptr;
  const int error = checked(cudaEventCreateWithFlags(&made, timing ? 0 : cudaEventDisableTiming));
  if (!error) *event = made;
  return error;
}
int event_destroy(void* event) { return checked(cudaEventDestroy(as_event(event))); }
int event_record(void* event, void* stream) {
  return checked(cudaEventRecord(as_event(event), as_stream(stream)));
}
int event_query(void* event) { return checked(cudaEventQuery(as_event(event))); }
int event_synchronize(void* event) { return waited(cudaEventSynchronize(as_event(event))); }
int event_elapsed(void* first, void* last, float* milliseconds) {
  return checked(cudaEventElapsedTime(milliseconds, as_event(first), as_event(last)));
}

int copy_async(void* to, const void* from, std::size_t bytes, CudaCopy kind, void* stream) {
  const cudaMemcpyKind kinds[] = {cudaMemcpyDefault, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost,
                                  cudaMemcpyDeviceToDevice};
  if (kind != CudaCopy::on_device) {
    CudaMemory host = CudaMemory::pageable;
    int device = -1;
    if (const int error = memory_kind(kind == CudaCopy::to_device ? from : to, &host, &device))
      return error;
    if (host == CudaMemory::pageable) synchronising.fetch_add(1, std::memory_order_relaxed);
  }
  return checked(
      cudaMemcpyAsync(to, from, bytes, kinds[static_cast<int>(kind)], as_stream(stream)));
}
int fill_async(void* device_memory, int byte, std::size_t bytes, void* stream) {
  return checked(cudaMemsetAsync(device_memory, byte, bytes, as_stream(stream)));
}

// Thread-local: what other threads do meanwhile (copies, events of their streams) is their own.
int begin_capture(void* stream) {
  return checked(cudaStreamBeginCapture(as_stream(stream), cudaStreamCaptureModeThreadLocal));
}
int end_capture(void* stream, void** graph) {
  cudaGraph_t recorded = nullptr;
  if (const int error = checked(cudaStreamEndCapture(as_stream(stream), &recorded))) return error;
  cudaGraphExec_t made = nullptr;
  const int error = checked(cudaGraphInstantiateWithFlags(&made, recorded, 0));
  (void)checked(cudaGraphDestroy(recorded));
  if (!error) *graph = made;
  return error;
}
int graph_launch(void* graph, void* stream) {
  return checked(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), as_stream(stream)));
}
int graph_destroy(void* graph) {
  return checked(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph)));
}

std::uint64_t synchronising_calls() { return synchronising.load(std::memory_order_relaxed); }

constexpr CudaApi kTable = {
    .version = kCudaApiVersion,
    .size = sizeof(CudaApi),
    .error_name = error_name,
    .error_text = error_text,
    .device_count = device_count,
    .versions = versions,
    .device_info = device_info,
    .use_device = use_device,
    .device_synchronize = device_synchronize,
    .allocate = allocate,
    .release = release,
    .memory_info = memory_info,
    .pin = pin,
    .unpin = unpin,
    .register_host = register_host,
    .unregister_host = unregister_host,
    .device_address = device_address,
    .memory_kind = memory_kind,
    .priorities = priorities,
    .stream_create = stream_create,
    .stream_destroy = stream_destroy,
    .stream_device = stream_device,
    .stream_wait_event = stream_wait_event,
    .stream_query = stream_query,
    .stream_synchronize = stream_synchronize,
    .event_create = event_create,
    .event_destroy = event_destroy,
    .event_record = event_record,
    .event_query = event_query,
    .event_synchronize = event_synchronize,
    .event_elapsed = event_elapsed,
    .copy_async = copy_async,
    .fill_async = fill_async,
    .begin_capture = begin_capture,
    .end_capture = end_capture,
    .graph_launch = graph_launch,
    .graph_destroy = graph_destroy,
    .synchronising_calls = synchronising_calls,
};

}  // namespace
}  // namespace prophet

extern "C" __attribute__((visibility("default"))) const prophet::CudaApi* prophet_cuda_api() {
  return &prophet::kTable;
}
