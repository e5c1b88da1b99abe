// What one instruction set provides, behind one table of functions. Internal to this room.
//
// Only files named *_avx2.cc and *_avx512.cc use intrinsics; they keep everything in an anonymous
// namespace and use no standard templates, so that no function compiled with their flags can be
// picked by the linker for code that runs on every machine.
#pragma once

#include <cstddef>
#include <cstdint>

namespace prophet {

// outputs[t][r] = sum over c < columns of rows[r][c] * inputs[t][c], for r < row_count.
// One (row, token) pair is summed in an order that depends on `columns` alone.
struct DotRows {
  const std::byte* rows = nullptr;  // [row_count, columns], dense, any byte address
  std::size_t row_count = 0;
  std::size_t columns = 0;
  const float* const* inputs = nullptr;  // [tokens], `columns` floats each
  float* const* outputs = nullptr;       // [tokens], `row_count` floats each
  int tokens = 1;                        // 1 .. KernelSet::token_block
};

// Enough room for the token block of every set.
inline constexpr int kMaxTokenBlock = 8;

struct KernelSet {
  const char* name;
  int token_block;  // tokens served by one pass over the weights, <= kMaxTokenBlock
  void (*dot_f32)(const DotRows&);
  void (*dot_f16)(const DotRows&);
  void (*dot_bf16)(const DotRows&);
  void (*widen_f16)(const void* source, float* target, std::size_t n);
  void (*widen_bf16)(const void* source, float* target, std::size_t n);
  void (*narrow_f16)(const float* source, void* target, std::size_t n);
  void (*narrow_bf16)(const float* source, void* target, std::size_t n);
  // Reads `bytes` (a multiple of 256, at a 64-byte boundary) and folds them into one word, so that
  // nothing can be skipped.
  std::uint64_t (*fold)(const std::byte* data, std::size_t bytes);
};

extern const KernelSet kPortableKernels;
#if defined(__x86_64__)
extern const KernelSet kAvx2Kernels;
extern const KernelSet kAvx512Kernels;
#endif

// Conversions without intrinsics, for sets that have no better.
void widen_bf16_portable(const void* source, float* target, std::size_t n);
void narrow_bf16_portable(const float* source, void* target, std::size_t n);

// The set in use: the best of the machine, lowered by PROPHET_ISA or chosen by set_kernel_isa.
// Throws InvalidArgument when PROPHET_ISA holds an unknown name.
const KernelSet& kernel_set();

}  // namespace prophet
