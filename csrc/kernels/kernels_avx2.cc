// Kernels for AVX2 with FMA and F16C.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cstring>

#include "kernels/kernel_set.h"

namespace prophet {
namespace {

constexpr std::size_t kLanes = 8;
constexpr int kChains = 4;  // accumulators of one (row, token) pair: fixed, it decides the order
constexpr int kTokens = 3;  // 3 tokens x 4 chains: 12 of 16 registers

struct F32 {
  static constexpr std::size_t kBytes = 4;
  static __m256 load(const std::byte* p) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
  }
};

struct F16 {
  static constexpr std::size_t kBytes = 2;
  static __m256 load(const std::byte* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
};

struct BF16 {
  static constexpr std::size_t kBytes = 2;
  static __m256 load(const std::byte* p) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
};

// A partial vector, padded with zeros.
template <class Weight>
inline __m256 load_some(const std::byte* p, std::size_t n) {
  std::byte padded[kLanes * Weight::kBytes] = {};
  std::memcpy(padded, p, n * Weight::kBytes);
  return Weight::load(padded);
}

inline float sum_of(__m256 v) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

// One row against T tokens. Vectors of columns go to the chains in turn; the last, partial vector
// is padded with zeros on both sides.
template <class Weight, int T>
inline void dot_row(const std::byte* row, std::size_t columns, const float* const* inputs,
                    float* const* outputs, std::size_t r) {
  constexpr std::size_t kStep = kChains * kLanes;
  __m256 sums[T][kChains];
  for (int t = 0; t < T; ++t)
    for (int a = 0; a < kChains; ++a) sums[t][a] = _mm256_setzero_ps();

  // May point past the matrix; a prefetch cannot fault.
  const std::uintptr_t ahead = reinterpret_cast<std::uintptr_t>(row) + 4096;
  std::size_t c = 0;
  for (; c + kStep <= columns; c += kStep) {
#pragma GCC unroll 8
    for (std::size_t line = 0; line < kStep * Weight::kBytes; line += 64)
      _mm_prefetch(reinterpret_cast<const char*>(ahead + c * Weight::kBytes + line), _MM_HINT_T0);
#pragma GCC unroll 8
    for (int a = 0; a < kChains; ++a) {
      const __m256 weights = Weight::load(row + (c + a * kLanes) * Weight::kBytes);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t)
        sums[t][a] =
            _mm256_fmadd_ps(weights, _mm256_loadu_ps(inputs[t] + c + a * kLanes), sums[t][a]);
    }
  }
#pragma GCC unroll 8
  for (int a = 0; a < kChains; ++a) {
    if (c >= columns) break;
    const std::size_t left = columns - c < kLanes ? columns - c : kLanes;
    const __m256 weights = load_some<Weight>(row + c * Weight::kBytes, left);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const auto* x = reinterpret_cast<const std::byte*>(inputs[t] + c);
      sums[t][a] = _mm256_fmadd_ps(weights, load_some<F32>(x, left), sums[t][a]);
    }
    c += kLanes;
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t)
    outputs[t][r] = sum_of(_mm256_add_ps(_mm256_add_ps(sums[t][0], sums[t][1]),
                                         _mm256_add_ps(sums[t][2], sums[t][3])));
}

template <class Weight, int T>
void dot_rows(const DotRows& call) {
  const std::size_t stride = call.columns * Weight::kBytes;
  for (std::size_t r = 0; r < call.row_count; ++r)
    dot_row<Weight, T>(call.rows + r * stride, call.columns, call.inputs, call.outputs, r);
}

template <class Weight>
void dot(const DotRows& call) {
  switch (call.tokens) {
    case 1:
      return dot_rows<Weight, 1>(call);
    case 2:
      return dot_rows<Weight, 2>(call);
    default:
      return dot_rows<Weight, kTokens>(call);
  }
}

void widen_f16(const void* source, float* target, std::size_t n) {
  const std::byte* bytes = static_cast<const std::byte*>(source);
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) _mm256_storeu_ps(target + i, F16::load(bytes + 2 * i));
  if (i == n) return;
  float rest[kLanes];
  _mm256_storeu_ps(rest, load_some<F16>(bytes + 2 * i, n - i));
  std::memcpy(target + i, rest, (n - i) * sizeof(float));
}

void narrow_f16(const float* source, void* target, std::size_t n) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  std::byte* bytes = static_cast<std::byte*>(target);
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + 2 * i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(source + i), kNearest));
  }
  if (i == n) return;
  const auto* rest = reinterpret_cast<const std::byte*>(source + i);
  const __m128i halves = _mm256_cvtps_ph(load_some<F32>(rest, n - i), kNearest);
  std::memcpy(bytes + 2 * i, &halves, 2 * (n - i));
}

std::uint64_t fold(const std::byte* data, std::size_t bytes) {
  __m256i words[8];
  for (__m256i& word : words) word = _mm256_setzero_si256();
  for (std::size_t i = 0; i < bytes; i += 256) {
#pragma GCC unroll 8
    for (int w = 0; w < 8; ++w) {
      const auto* p = reinterpret_cast<const __m256i*>(data + i + 32 * w);
      words[w] = _mm256_xor_si256(words[w], _mm256_load_si256(p));
    }
  }
  __m256i all = words[0];
  for (int w = 1; w < 8; ++w) all = _mm256_xor_si256(all, words[w]);
  std::uint64_t lanes[4];
  std::memcpy(lanes, &all, sizeof lanes);
  return lanes[0] ^ lanes[1] ^ lanes[2] ^ lanes[3];
}

}  // namespace

const KernelSet kAvx2Kernels = {
    .name = "avx2",
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
#endif
