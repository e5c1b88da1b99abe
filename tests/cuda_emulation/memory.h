// Memory as CUDA sees it: of a device, page-locked, or neither.
//
// Device memory is one file in memory mapped twice: without access, between guard pages, at the
// address that callers get, and readable at a second address that only copies use. A host that
// follows a device address dies of SIGSEGV. Kernels need the first address open, so it is open
// while at least one runs. Fresh memory is filled with 0xCD. Under ThreadSanitizer there is one
// mapping, always open: a copy and a kernel must meet at the same address for their race to be
// seen.
//
// Freeing is the caller's to order: it waits for all streams first.
#pragma once

#include <driver_types.h>

#include <cstddef>
#include <cstdint>

namespace prophet::emulation {

cudaError_t allocate_device(int device, std::size_t bytes, void** out);
cudaError_t release_device(void* address);
std::size_t device_memory_used(int device);

cudaError_t allocate_pinned(int device, std::size_t bytes, void** out);
cudaError_t release_pinned(void* address);
cudaError_t register_pinned(int device, void* address, std::size_t bytes);
cudaError_t unregister_pinned(void* address);

struct Location {
  cudaMemoryType kind = cudaMemoryTypeUnregistered;
  int device = -1;
  bool whole = false;      // all the bytes asked about lie inside one allocation
  bool mappable = false;   // kernels may use it
  char* access = nullptr;  // where copies reach it
};
Location location_of(const void* address, std::size_t bytes);

// While one lives, device memory is open at the addresses that callers know.
class OpenForKernels {
 public:
  OpenForKernels();
  ~OpenForKernels();
  OpenForKernels(const OpenForKernels&) = delete;
  OpenForKernels& operator=(const OpenForKernels&) = delete;
};

// Device allocations, and page-locked ranges, that nobody has given back.
std::uint64_t live_device_allocations();
std::uint64_t live_pinned_ranges();

}  // namespace prophet::emulation
