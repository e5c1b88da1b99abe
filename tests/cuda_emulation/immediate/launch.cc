// A runtime without streams for tests of single kernels: a launch runs at once on the calling
// thread, over ordinary memory. For launch.h and the two functions of CUDA that kernels need.
#include "cuda_emulation/launch.h"

#include <driver_types.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>

namespace {

thread_local cudaError_t last_error = cudaSuccess;
std::map<const void*, std::size_t> allowed;

}  // namespace

extern "C" cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

extern "C" cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute, int value) {
  if (value > (99 << 10)) return cudaErrorInvalidValue;
  allowed[function] = std::size_t(value);
  return cudaSuccess;
}

namespace prophet::emulation {

void launch(void*, Launch call) {
  const auto found = allowed.find(call.function);
  const std::size_t most = found == allowed.end() ? 48 << 10 : found->second;
  if (call.threads < 1 || call.threads > 1024 || call.shared_bytes > most) {
    last_error = cudaErrorInvalidValue;
    return;
  }
  call.body();
}

std::uint64_t schedule_seed() {
  const char* text = std::getenv("PROPHET_EMULATED_SEED");
  return text == nullptr ? 0 : std::strtoull(text, nullptr, 10);
}

void kernel_failed(const char*, const char* sentence) {
  std::fprintf(stderr, "prophet emulation: %s\n", sentence);
  last_error = cudaErrorLaunchFailure;
}

}  // namespace prophet::emulation
