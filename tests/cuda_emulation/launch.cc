// Launches, and what functions are allowed.
#include "launch.h"

#include <cstdio>
#include <map>
#include <mutex>

#include "device/cuda/kernel_image_cuda.h"
#include "memory.h"
#include "runtime.h"
#include "settings.h"

namespace prophet {

// Stands for csrc/device/cuda/kernel_image_cuda.cu: settings say whether there is an image.
const void* kernel_image() { return reinterpret_cast<const void*>(&kernel_image); }

namespace emulation {
namespace {

constexpr unsigned kThreadsPerBlock = 1024;

struct Allowances {
  std::mutex mutex;
  std::map<const void*, std::size_t> shared;
};

Allowances& allowances() {
  static auto* kept = new Allowances;
  return *kept;
}

std::size_t allowed_shared(const void* function) {
  const Unordered hidden;
  const std::scoped_lock lock(allowances().mutex);
  const auto found = allowances().shared.find(function);
  return found == allowances().shared.end() ? kSharedPerBlock : found->second;
}

}  // namespace

void launch(void* stream_handle, Launch kernel) {
  if (enter("cudaLaunchKernel")) return;
  const auto stream = stream_of(stream_handle);
  if (!stream) {
    leave(cudaErrorInvalidResourceHandle);
  } else if (kernel.threads == 0 || kernel.threads > kThreadsPerBlock) {
    leave(cudaErrorInvalidConfiguration);
  } else if (kernel.shared_bytes > allowed_shared(kernel.function)) {
    leave(cudaErrorInvalidValue);
  } else if (!settings().image) {
    leave(cudaErrorNoKernelImageForDevice);
  } else {
    stream->push([body = std::move(kernel.body)] {
      if (device_lost()) return;
      const OpenForKernels open;
      body();
    });
  }
}

std::uint64_t schedule_seed() { return settings().seed; }

void kernel_failed(const char* kernel, const char* sentence) {
  std::fprintf(stderr, "emulated kernel %s: %s\n", kernel, sentence);
  lose_device(cudaErrorLaunchFailure);
}

bool reachable(const void* address, std::size_t bytes) {
  const Location place = location_of(address, bytes);
  return place.mappable && place.whole;
}

}  // namespace emulation
}  // namespace prophet

using namespace prophet::emulation;

extern "C" {

cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute attribute, int value) {
  PROPHET_ENTER();
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<std::size_t>(value) > kSharedMost)
    return leave(cudaErrorInvalidValue);
  const Unordered hidden;
  const std::scoped_lock lock(allowances().mutex);
  allowances().shared[function] = static_cast<std::size_t>(value);
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* out, const void* function) {
  PROPHET_ENTER();
  if (!settings().image) return leave(cudaErrorNoKernelImageForDevice);
  *out = cudaFuncAttributes{};
  out->maxThreadsPerBlock = kThreadsPerBlock;
  out->maxDynamicSharedSizeBytes = static_cast<int>(allowed_shared(function));
  return cudaSuccess;
}

}  // extern "C"
