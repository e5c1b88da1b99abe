// Kernels for AVX-512 F, BW, VL and DQ.
#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)  // its header starts vectors from themselves
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "kernels/kernel_set.h"

namespace prophet {
namespace {

constexpr std::size_t kLanes = 16;
constexpr int kChains = 2;  // accumulators of one (row, token) pair: fixed, it decides the order
constexpr int kTokens = 4;

struct F32 {
  static constexpr std::size_t kBytes = 4;
  static __m512 load(const std::byte* p) { return _mm512_loadu_ps(p); }
  static __m512 load(__mmask16 some, const std::byte* p) { return _mm512_maskz_loadu_ps(some, p); }
};

struct F16 {
  static constexpr std::size_t kBytes = 2;
  static __m512 widen(__m256i halves) { return _mm512_cvtph_ps(halves); }
  static __m512 load(const std::byte* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static __m512 load(__mmask16 some, const std::byte* p) {
    return widen(_mm256_maskz_loadu_epi16(some, p));
  }
};

struct BF16 {
  static constexpr std::size_t kBytes = 2;
  static __m512 widen(__m256i halves) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
  static __m512 load(const std::byte* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static __m512 load(__mmask16 some, const std::byte* p) {
    return widen(_mm256_maskz_loadu_epi16(some, p));
  }
};

// R rows against T tokens. One row alone streams best; with more tokens, a second row halves the
// loads of x. Vectors of columns go to the chains in turn; the last, partial vector is padded with
// zeros on both sides.
template <class Weight, int R, int T>
inline void dot_block(const std::byte* rows, std::size_t columns, const float* const* inputs,
                      float* const* outputs, std::size_t first) {
  const std::size_t stride = columns * Weight::kBytes;
  constexpr std::size_t kStep = kChains * kLanes;
  __m512 sums[R][T][kChains];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t)
      for (int a = 0; a < kChains; ++a) sums[r][t][a] = _mm512_setzero_ps();

  // The memory controller sees one ascending stream, whatever R: what comes a page later, or the
  // next block of rows. It may point past the matrix; a prefetch cannot fault.
  const std::uintptr_t ahead =
      reinterpret_cast<std::uintptr_t>(rows) + (R == 1 ? 4096 : R * stride);
  std::size_t c = 0;
  for (; c + kStep <= columns; c += kStep) {
#pragma GCC unroll 8
    for (std::size_t line = 0; line < R * kStep * Weight::kBytes; line += 64)
      _mm_prefetch(reinterpret_cast<const char*>(ahead + R * c * Weight::kBytes + line),
                   _MM_HINT_T0);
#pragma GCC unroll 8
    for (int a = 0; a < kChains; ++a) {
      __m512 weights[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        weights[r] = Weight::load(rows + r * stride + (c + a * kLanes) * Weight::kBytes);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        __m512 x = _mm512_loadu_ps(inputs[t] + c + a * kLanes);
        // Else GCC folds one load of x into each multiplication, and loads are the bottleneck.
        if constexpr (R > 1) asm("" : "+v"(x));
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) sums[r][t][a] = _mm512_fmadd_ps(weights[r], x, sums[r][t][a]);
      }
    }
  }
#pragma GCC unroll 8
  for (int a = 0; a < kChains; ++a) {
    if (c >= columns) break;
    const std::size_t left = columns - c;
    const __mmask16 some = left >= kLanes ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512 weights = Weight::load(some, rows + r * stride + c * Weight::kBytes);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t)
        sums[r][t][a] =
            _mm512_fmadd_ps(weights, _mm512_maskz_loadu_ps(some, inputs[t] + c), sums[r][t][a]);
    }
    c += kLanes;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t)
      outputs[t][first + r] = _mm512_reduce_add_ps(_mm512_add_ps(sums[r][t][0], sums[r][t][1]));
}

template <class Weight, int R, int T>
void dot_rows(const DotRows& call) {
  const std::size_t stride = call.columns * Weight::kBytes;
  std::size_t r = 0;
  for (; r + R <= call.row_count; r += R)
    dot_block<Weight, R, T>(call.rows + r * stride, call.columns, call.inputs, call.outputs, r);
  for (; r < call.row_count; ++r)
    dot_block<Weight, 1, T>(call.rows + r * stride, call.columns, call.inputs, call.outputs, r);
}

template <class Weight>
void dot(const DotRows& call) {
  switch (call.tokens) {
    case 1:
      return dot_rows<Weight, 1, 1>(call);
    case 2:
      return dot_rows<Weight, 2, 2>(call);
    case 3:
      return dot_rows<Weight, 2, 3>(call);
    default:
      return dot_rows<Weight, 2, kTokens>(call);
  }
}

template <class Half>
void widen(const void* source, float* target, std::size_t n) {
  const std::byte* bytes = static_cast<const std::byte*>(source);
  for (std::size_t i = 0; i < n; i += kLanes) {
    const std::size_t left = n - i;
    const __mmask16 some = left >= kLanes ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
    _mm512_mask_storeu_ps(target + i, some, Half::load(some, bytes + 2 * i));
  }
}

void narrow_f16(const float* source, void* target, std::size_t n) {
  std::byte* bytes = static_cast<std::byte*>(target);
  for (std::size_t i = 0; i < n; i += kLanes) {
    const std::size_t left = n - i;
    const __mmask16 some = left >= kLanes ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
    const __m256i halves = _mm512_cvtps_ph(_mm512_maskz_loadu_ps(some, source + i),
                                           _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm256_mask_storeu_epi16(bytes + 2 * i, some, halves);
  }
}

std::uint64_t fold(const std::byte* data, std::size_t bytes) {
  __m512i words[4];
  for (__m512i& word : words) word = _mm512_setzero_si512();
  for (std::size_t i = 0; i < bytes; i += 256) {
#pragma GCC unroll 4
    for (int w = 0; w < 4; ++w)
      words[w] = _mm512_xor_si512(words[w], _mm512_load_si512(data + i + 64 * w));
  }
  const __m512i all =
      _mm512_xor_si512(_mm512_xor_si512(words[0], words[1]), _mm512_xor_si512(words[2], words[3]));
  alignas(64) std::uint64_t lanes[8];
  _mm512_store_si512(lanes, all);
  std::uint64_t result = 0;
  for (std::uint64_t lane : lanes) result ^= lane;
  return result;
}

}  // namespace

const KernelSet kAvx512Kernels = {
    .name = "avx512",
    .token_block = kTokens,
    .dot_f32 = dot<F32>,
    .dot_f16 = dot<F16>,
    .dot_bf16 = dot<BF16>,
    .widen_f16 = widen<F16>,
    .widen_bf16 = widen<BF16>,
    .narrow_f16 = narrow_f16,
    .narrow_bf16 = narrow_bf16_portable,
    .fold = fold,
};

}  // namespace prophet
#endif
