// Predictor kernels for AVX-512 F, BW, VL and DQ.
#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)  // its header starts vectors from themselves
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/predictor_math_set.h"

namespace prophet {
namespace {

struct V {
  static constexpr std::size_t kWidth = 16;
  __m512 v;

  static V load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static V half(const std::uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static V all(float x) { return {_mm512_set1_ps(x)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  friend V operator+(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend V operator-(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend V operator*(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend V operator/(V a, V b) { return {_mm512_div_ps(a.v, b.v)}; }
  static V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static V min(V a, V b) { return {_mm512_min_ps(a.v, b.v)}; }
  static V max(V a, V b) { return {_mm512_max_ps(a.v, b.v)}; }
  float sum() const { return _mm512_reduce_add_ps(v); }
  static V round(V x) {
    return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  static V two_to(V k) { return {_mm512_scalef_ps(_mm512_set1_ps(1), k.v)}; }
  static void split(V x, V& e, V& m) {
    const __m512i bits = _mm512_castps_si512(x.v);
    // Moves the cut of the exponent from 1 to sqrt(1/2).
    const __m512i power =
        _mm512_srai_epi32(_mm512_sub_epi32(bits, _mm512_set1_epi32(0x3f3504f3)), 23);
    e.v = _mm512_cvtepi32_ps(power);
    m.v = _mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(power, 23)));
  }
};

}  // namespace
}  // namespace prophet

#include "kernels/predictor_math_body.h"

namespace prophet {
const PredictorKernels kAvx512PredictorKernels = kKernels;
}  // namespace prophet
#endif
