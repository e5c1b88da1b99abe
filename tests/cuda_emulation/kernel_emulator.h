// What csrc/kernels/cuda_dialect.cuh means to an ordinary compiler: the words of CUDA C++ that
// kernels use, on one fiber per CUDA thread (kernel_emulator.cc).
//
// A launch runs its blocks one after another, in random order, so blocks must not wait for each
// other. The threads of a block switch at barriers, warp operations, atomics and __nanosleep only;
// which goes next is decided by random priorities of warps and a random order of lanes, from a
// seed. Shared memory starts as NaN bytes between guard bytes. A barrier that threads reach at
// different places or not at all, a warp operation whose lanes disagree, and shared memory written
// outside its bounds end the kernel (kernel_failed). A shuffle from a lane outside its mask gives
// NaN.
//
// In a process with ThreadSanitizer each CUDA thread is a fiber of the sanitizer's, and only what
// orders memory on a device orders it here: barriers, __syncwarp, fences with atomics, load_mapped
// and store_mapped. Shuffles do not, nor does a block's turn.
//
// Functions such as __expf are exact here and approximate on a device: compare with tolerances.
#pragma once

#pragma GCC diagnostic ignored "-Wunknown-pragmas"  // unroll

#include <driver_types.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "cuda_emulation/launch.h"

// These two are plain C++ to a host compiler. The attributes of the toolkit's headers are dropped
// after all of them have been read.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __launch_bounds__
#undef __forceinline__
#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __forceinline__ inline

extern "C" cudaError_t cudaGetLastError();
extern "C" cudaError_t cudaFuncSetAttribute(const void* function, cudaFuncAttribute what,
                                            int value);

namespace prophet::emulation {

// Where the running CUDA thread stands.
struct Place {
  uint3 thread, block;
  dim3 block_size, grid_size;
};
const Place& here();

struct Kernel {
  const char* name;
  dim3 grid, block;
  std::size_t shared_bytes;
  void (*thread)(const void* arguments);  // one CUDA thread from beginning to end
  const void* arguments;
};
// Runs all blocks on the calling thread.
void run(const Kernel& kernel);

// Of the running thread, from here on. Threads that take part in one operation are at one place.
// PROPHET_EMULATED_DROP="top_k_cuda.cu:71" makes a barrier or fence at that place do nothing: a
// mutant, for tests of the tests.
struct Source {
  const char* file;  // without folders
  int line;
};
void sync_threads(Source source);
void sync_warp(unsigned mask, Source source);
std::uint64_t exchange(unsigned mask, std::uint64_t value, int from_lane, Source source);
unsigned ballot(unsigned mask, bool vote, Source source);
void nanosleep(unsigned nanoseconds);
void fence(Source source);
void before_atomic(const void* word);
void after_atomic(const void* word);
void* shared_memory(const void* declaration, std::size_t bytes);
void* dynamic_shared_memory();
inline int lane() {
  const Place& p = here();
  return (p.thread.x + p.block_size.x * (p.thread.y + p.block_size.y * p.thread.z)) % 32;
}

template <typename T>
T exchange_as(unsigned mask, T value, int from_lane, Source source) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(mask, bits, from_lane, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// Lanes that would leave their group of `width` read themselves.
inline int inside(int lane, int other, int width) {
  return lane / width == other / width ? other : lane;
}

template <typename T, typename Change>
T atomic(T* word, Change change) {
  before_atomic(word);
  T old, next;
  __atomic_load(word, &old, __ATOMIC_RELAXED);
  do {
    next = change(old);
  } while (
      !__atomic_compare_exchange(word, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  after_atomic(word);
  return old;
}

template <typename... Parameters>
int launch_kernel(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                  std::size_t shared_bytes, void* stream,
                  std::type_identity_t<Parameters>... arguments) {
  Launch call;
  call.kernel = name;
  call.threads = block.x * block.y * block.z;
  call.shared_bytes = shared_bytes;
  call.function = reinterpret_cast<const void*>(kernel);
  call.body = [=] {
    const auto thread = [=] { kernel(arguments...); };
    run({name, grid, block, shared_bytes,
         [](const void* all) { (*static_cast<const decltype(thread)*>(all))(); }, &thread});
  };
  launch(stream, std::move(call));
  return static_cast<int>(cudaGetLastError());
}

}  // namespace prophet::emulation

#define PROPHET_HERE (::prophet::emulation::Source{__FILE_NAME__, __LINE__})

#define threadIdx (::prophet::emulation::here().thread)
#define blockIdx (::prophet::emulation::here().block)
#define blockDim (::prophet::emulation::here().block_size)
#define gridDim (::prophet::emulation::here().grid_size)

#define PROPHET_SHARED(type, name, count)   \
  static const char name##_declaration = 0; \
  type* const name = static_cast<type*>(    \
      ::prophet::emulation::shared_memory(&name##_declaration, sizeof(type) * (count)))
#define PROPHET_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(::prophet::emulation::dynamic_shared_memory())
#define PROPHET_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                    \
  ::prophet::emulation::launch_kernel(#kernel, kernel, grid, block, shared_bytes, stream, \
                                      __VA_ARGS__)
#define PROPHET_ALLOW_SHARED(kernel, bytes)                                    \
  static_cast<int>(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), \
                                        cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)))

#define __syncthreads() ::prophet::emulation::sync_threads(PROPHET_HERE)
#define __threadfence() ::prophet::emulation::fence(PROPHET_HERE)
#define __threadfence_block() ::prophet::emulation::fence(PROPHET_HERE)
#define __threadfence_system() ::prophet::emulation::fence(PROPHET_HERE)
#define __syncwarp(mask) ::prophet::emulation::sync_warp(mask, PROPHET_HERE)
#define __ballot_sync(mask, vote) ::prophet::emulation::ballot(mask, vote, PROPHET_HERE)
#define __any_sync(mask, vote) (__ballot_sync(mask, vote) != 0)
#define __all_sync(mask, vote) (__ballot_sync(mask, vote) == (mask))
#define __shfl_sync(mask, value, lane) \
  ::prophet::emulation::exchange_as(mask, value, (lane) % 32, PROPHET_HERE)
#define __shfl_xor_sync(mask, value, bits)                                              \
  ::prophet::emulation::exchange_as(mask, value, ::prophet::emulation::lane() ^ (bits), \
                                    PROPHET_HERE)
#define __shfl_down_sync(mask, value, by)                                       \
  ::prophet::emulation::exchange_as(                                            \
      mask, value,                                                              \
      ::prophet::emulation::inside(::prophet::emulation::lane(),                \
                                   ::prophet::emulation::lane() + int(by), 32), \
      PROPHET_HERE)
#define __shfl_up_sync(mask, value, by)                                           \
  ::prophet::emulation::exchange_as(mask, value,                                  \
                                    ::prophet::emulation::lane() < int(by)        \
                                        ? ::prophet::emulation::lane()            \
                                        : ::prophet::emulation::lane() - int(by), \
                                    PROPHET_HERE)

inline void __nanosleep(unsigned nanoseconds) { prophet::emulation::nanosleep(nanoseconds); }

template <typename T>
T atomicAdd(T* word, std::type_identity_t<T> value) {
  return prophet::emulation::atomic(word, [value](T old) { return T(old + value); });
}
template <typename T>
T atomicMax(T* word, std::type_identity_t<T> value) {
  return prophet::emulation::atomic(word, [value](T old) { return old > value ? old : value; });
}
template <typename T>
T atomicExch(T* word, std::type_identity_t<T> value) {
  return prophet::emulation::atomic(word, [value](T) { return value; });
}
template <typename T>
T atomicCAS(T* word, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return prophet::emulation::atomic(word, [=](T old) { return old == expected ? value : old; });
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned bits) {
  return static_cast<unsigned>(((std::uint64_t(high) << 32) | low) >> (bits % 32));
}

namespace prophet {

using std::isfinite;
using std::max;
using std::min;

template <typename T>
T load_mapped(const T* word) {
  return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}
template <typename T>
void store_mapped(T* word, T value) {
  __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

}  // namespace prophet
