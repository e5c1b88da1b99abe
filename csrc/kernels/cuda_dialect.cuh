// The one language in which kernels are written: nvcc compiles it for a device, an ordinary
// compiler with PROPHET_CUDA_EMULATED for the emulator of tests/cuda_emulation. Kernels include
// this header and nothing else of CUDA.
//
//  * Shared memory is declared by PROPHET_SHARED or PROPHET_DYNAMIC_SHARED, by all threads of a
//    block, outside of any condition.
//  * A kernel is launched by PROPHET_LAUNCH, in *_cuda.cu files only; above 48 KiB of dynamic
//  shared
//    memory after PROPHET_ALLOW_SHARED. Both give a cudaError_t's number.
//  * Every warp operation names its mask and is reached by every lane in it; a barrier is reached
//  by
//    every thread of the block that has not returned, and none returns before one.
//  * A kernel that waits for the host calls __nanosleep in its loop, and reads what the host writes
//    through load_mapped; what the host reads is written through store_mapped.
//  * Sums use fmaf where rounding must not depend on the compiler.
//  * No inline PTX, tensor cores, cp.async, cooperative groups, clusters: the emulator has none.
#pragma once

#ifdef PROPHET_CUDA_EMULATED

#include "cuda_emulation/kernel_emulator.h"

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>

#define PROPHET_SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define PROPHET_DYNAMIC_SHARED(type, name)                              \
  extern __shared__ __align__(16) unsigned char prophet_shared_bytes[]; \
  type* name = reinterpret_cast<type*>(prophet_shared_bytes)
#define PROPHET_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::prophet::launch_kernel(kernel, grid, block, shared_bytes, stream, __VA_ARGS__)
#define PROPHET_ALLOW_SHARED(kernel, bytes)                                                    \
  static_cast<int>(cudaFuncSetAttribute((kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, \
                                        static_cast<int>(bytes)))

namespace prophet {

template <typename... Parameters>
int launch_kernel(void (*kernel)(Parameters...), dim3 grid, dim3 block, std::size_t shared_bytes,
                  void* stream, std::type_identity_t<Parameters>... arguments) {
  void* list[] = {const_cast<void*>(static_cast<const void*>(&arguments))...};
  const cudaError_t code = cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block,
                                            list, shared_bytes, static_cast<cudaStream_t>(stream));
  if (code != cudaSuccess) cudaGetLastError();  // it is told here and nowhere else
  return static_cast<int>(code);
}

// Words that the host writes or reads while kernels run (mapped, page-locked memory). A load sees
// all that the host wrote before the word; a store is seen after all that the thread wrote before.
template <typename T>
__device__ __forceinline__ T load_mapped(const T* word) {
  const T value = *const_cast<const volatile T*>(word);
  __threadfence_system();
  return value;
}

template <typename T>
__device__ __forceinline__ void store_mapped(T* word, T value) {
  __threadfence_system();
  *const_cast<volatile T*>(word) = value;
}

}  // namespace prophet

#endif

namespace prophet {

constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kWarp = 32;

// The sum over a warp, the same bits in every lane.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kWholeWarp, value, distance);
  }
  return value;
}

}  // namespace prophet
