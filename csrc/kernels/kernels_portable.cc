// Kernels in plain C++: the path of every machine, and the meaning of the others.
#include <bit>
#include <cstring>

#include "kernels/kernel_set.h"

namespace prophet {
namespace {

constexpr int kLanes = 16;  // partial sums of one (row, token) pair
constexpr int kTokens = 2;  // more would not fit the registers of SSE2

float widen_one_f32(std::uint32_t bits) { return std::bit_cast<float>(bits); }

float widen_one_bf16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

// Exponents differ by 112: an exact product, subnormals included. Inf and NaN land at 2^16 and
// above, where no finite half can, and get the exponent of all ones back.
float widen_one_f16(std::uint16_t bits) {
  const std::uint32_t magnitude = static_cast<std::uint32_t>(bits & 0x7fffu) << 13;
  const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
  const std::uint32_t special = scaled >= 65536.0f ? 0x7f800000u : 0u;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(scaled) | special | sign);
}

std::uint16_t narrow_one_bf16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t quiet_nan = (bits >> 16) | 0x40u;
  return static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

std::uint16_t narrow_one_f16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t half = 0;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  } else if (magnitude >= 0x477ff000u) {  // 65520 rounds to infinity
    half = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // normal halves: rebias, round
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  } else {  // subnormal halves: adding 1/2 leaves the rounded multiple of 2^-24 in the low bits
    half = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  }
  return static_cast<std::uint16_t>(sign | half);
}

struct F32 {
  using Bits = std::uint32_t;
  static float widen(Bits bits) { return widen_one_f32(bits); }
};
struct F16 {
  using Bits = std::uint16_t;
  static float widen(Bits bits) { return widen_one_f16(bits); }
};
struct BF16 {
  using Bits = std::uint16_t;
  static float widen(Bits bits) { return widen_one_bf16(bits); }
};

// Lane l of each sum takes weight l times x l.
template <class Weight, int T>
inline void accumulate(const std::byte* row, const float* const (&x)[T], float (&sums)[T][kLanes]) {
  typename Weight::Bits bits[kLanes];
  std::memcpy(bits, row, sizeof bits);
  float weights[kLanes];
  for (int l = 0; l < kLanes; ++l) weights[l] = Weight::widen(bits[l]);
  for (int t = 0; t < T; ++t) {
    for (int l = 0; l < kLanes; ++l) sums[t][l] += weights[l] * x[t][l];
  }
}

// One row against T tokens. Lane l sums columns l, l + 16, l + 32 ...; the last, partial group is
// padded with zeros on both sides; lanes are then folded in halves.
template <class Weight, int T>
void dot_row(const std::byte* row, std::size_t columns, const float* const* inputs, float* result) {
  constexpr std::size_t kBytes = sizeof(typename Weight::Bits);
  float sums[T][kLanes] = {};
  const float* x[T];
  std::size_t c = 0;
  for (; c + kLanes <= columns; c += kLanes) {
    for (int t = 0; t < T; ++t) x[t] = inputs[t] + c;
    accumulate<Weight, T>(row + c * kBytes, x, sums);
  }
  if (c < columns) {
    std::byte padded_row[kLanes * kBytes] = {};
    float padded_x[T][kLanes] = {};
    std::memcpy(padded_row, row + c * kBytes, (columns - c) * kBytes);
    for (int t = 0; t < T; ++t) {
      std::memcpy(padded_x[t], inputs[t] + c, (columns - c) * sizeof(float));
      x[t] = padded_x[t];
    }
    accumulate<Weight, T>(padded_row, x, sums);
  }
  for (int t = 0; t < T; ++t) {
    for (int half = kLanes / 2; half > 0; half /= 2) {
      for (int l = 0; l < half; ++l) sums[t][l] += sums[t][l + half];
    }
    result[t] = sums[t][0];
  }
}

template <class Weight, int T>
void dot_rows(const DotRows& call) {
  const std::size_t stride = call.columns * sizeof(typename Weight::Bits);
  for (std::size_t r = 0; r < call.row_count; ++r) {
    float result[T];
    dot_row<Weight, T>(call.rows + r * stride, call.columns, call.inputs, result);
    for (int t = 0; t < T; ++t) call.outputs[t][r] = result[t];
  }
}

template <class Weight>
void dot(const DotRows& call) {
  if (call.tokens == 1) return dot_rows<Weight, 1>(call);
  dot_rows<Weight, kTokens>(call);
}

void widen_f16(const void* source, float* target, std::size_t n) {
  const std::byte* bytes = static_cast<const std::byte*>(source);
  for (std::size_t i = 0; i < n; ++i) {
    std::uint16_t bits;
    std::memcpy(&bits, bytes + 2 * i, 2);
    target[i] = widen_one_f16(bits);
  }
}

void narrow_f16(const float* source, void* target, std::size_t n) {
  std::byte* bytes = static_cast<std::byte*>(target);
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint16_t bits = narrow_one_f16(source[i]);
    std::memcpy(bytes + 2 * i, &bits, 2);
  }
}

std::uint64_t fold(const std::byte* data, std::size_t bytes) {
  std::uint64_t words[8] = {};
  for (std::size_t i = 0; i < bytes; i += sizeof words) {
    std::uint64_t next[8];
    std::memcpy(next, data + i, sizeof next);
    for (int w = 0; w < 8; ++w) words[w] ^= next[w];
  }
  std::uint64_t all = 0;
  for (std::uint64_t word : words) all ^= word;
  return all;
}

}  // namespace

void widen_bf16_portable(const void* source, float* target, std::size_t n) {
  const std::byte* bytes = static_cast<const std::byte*>(source);
  for (std::size_t i = 0; i < n; ++i) {
    std::uint16_t bits;
    std::memcpy(&bits, bytes + 2 * i, 2);
    target[i] = widen_one_bf16(bits);
  }
}

void narrow_bf16_portable(const float* source, void* target, std::size_t n) {
  std::byte* bytes = static_cast<std::byte*>(target);
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint16_t bits = narrow_one_bf16(source[i]);
    std::memcpy(bytes + 2 * i, &bits, 2);
  }
}

const KernelSet kPortableKernels = {
    .name = "portable",
    .token_block = kTokens,
    .dot_f32 = dot<F32>,
    .dot_f16 = dot<F16>,
    .dot_bf16 = dot<BF16>,
    .widen_f16 = widen_f16,
    .widen_bf16 = widen_bf16_portable,
    .narrow_f16 = narrow_f16,
    .narrow_bf16 = narrow_bf16_portable,
    .fold = fold,
};

}  // namespace prophet
