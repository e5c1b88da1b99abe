// Vectors of activations: conversions between element types, and the sum over experts.
#include <algorithm>
#include <cstring>

#include "kernels/expert_ffn.h"
#include "kernels/kernel_set.h"

namespace prophet {

void widen(DType from, const void* source, float* target, std::size_t n) {
  if (n == 0) return;  // pointers to nothing may be null
  switch (from) {
    case DType::f32:
      std::memcpy(target, source, n * sizeof(float));
      return;
    case DType::f16:
      kernel_set().widen_f16(source, target, n);
      return;
    case DType::bf16:
      kernel_set().widen_bf16(source, target, n);
      return;
  }
}

void narrow(const float* source, DType to, void* target, std::size_t n) {
  if (n == 0) return;
  switch (to) {
    case DType::f32:
      std::memcpy(target, source, n * sizeof(float));
      return;
    case DType::f16:
      kernel_set().narrow_f16(source, target, n);
      return;
    case DType::bf16:
      kernel_set().narrow_bf16(source, target, n);
      return;
  }
}

void weighted_sum(const float* weights, const float* const* parts, int k, float* out,
                  std::size_t n) {
  // A block at a time: sums stay in the first-level cache, and cannot alias what they are made of.
  constexpr std::size_t kBlock = 512;
  float sums[kBlock];
  for (std::size_t begin = 0; begin < n; begin += kBlock) {
    const std::size_t length = std::min(kBlock, n - begin);
    std::fill_n(sums, length, 0.0f);
    for (int part = 0; part < k; ++part) {
      if (parts[part] == nullptr) continue;
      const float* values = parts[part] + begin;
      const float weight = weights[part];
      for (std::size_t i = 0; i < length; ++i) sums[i] += weight * values[i];
    }
    std::copy_n(sums, length, out + begin);
  }
}

}  // namespace prophet
