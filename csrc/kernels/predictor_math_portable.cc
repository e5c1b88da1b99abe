// Predictor kernels in plain C++, and the choice among all of them.
#include <bit>
#include <cstddef>
#include <cstdint>

#include "kernels/kernel_set.h"
#include "kernels/predictor_math_set.h"

namespace prophet {
namespace {

struct V {
  static constexpr std::size_t kWidth = 8;
  float v[kWidth];

  template <class Lane>
  static V of(Lane lane) {
    V out;
    for (std::size_t i = 0; i < kWidth; ++i) out.v[i] = lane(i);
    return out;
  }
  static V load(const float* p) {
    return of([p](std::size_t i) { return p[i]; });
  }
  // Exponents differ by 112: an exact product, subnormals included.
  static V half(const std::uint16_t* p) {
    return of([p](std::size_t i) {
      const std::uint32_t magnitude = std::uint32_t(p[i] & 0x7fffu) << 13;
      const std::uint32_t sign = std::uint32_t(p[i] & 0x8000u) << 16;
      const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
      return std::bit_cast<float>(std::bit_cast<std::uint32_t>(scaled) | sign);
    });
  }
  static V all(float x) {
    return of([x](std::size_t) { return x; });
  }
  void store(float* p) const {
    for (std::size_t i = 0; i < kWidth; ++i) p[i] = v[i];
  }
  friend V operator+(const V& a, const V& b) {
    return of([&](std::size_t i) { return a.v[i] + b.v[i]; });
  }
  friend V operator-(const V& a, const V& b) {
    return of([&](std::size_t i) { return a.v[i] - b.v[i]; });
  }
  friend V operator*(const V& a, const V& b) {
    return of([&](std::size_t i) { return a.v[i] * b.v[i]; });
  }
  friend V operator/(const V& a, const V& b) {
    return of([&](std::size_t i) { return a.v[i] / b.v[i]; });
  }
  static V fma(const V& a, const V& b, const V& c) { return a * b + c; }
  static V min(const V& a, const V& b) {
    return of([&](std::size_t i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static V max(const V& a, const V& b) {
    return of([&](std::size_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  float sum() const { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }
  static V round(const V& x) {
    return of(
        [&](std::size_t i) { return float(std::int32_t(x.v[i] + (x.v[i] < 0 ? -0.5f : 0.5f))); });
  }
  static V two_to(const V& k) {
    return of(
        [&](std::size_t i) { return std::bit_cast<float>((std::int32_t(k.v[i]) + 127) << 23); });
  }
  static void split(const V& x, V& e, V& m) {
    for (std::size_t i = 0; i < kWidth; ++i) {
      const std::int32_t bits = std::bit_cast<std::int32_t>(x.v[i]);
      // Moves the cut of the exponent from 1 to sqrt(1/2).
      const std::int32_t power = (bits - 0x3f3504f3) >> 23;
      e.v[i] = float(power);
      m.v[i] = std::bit_cast<float>(bits - power * (1 << 23));
    }
  }
};

}  // namespace
}  // namespace prophet

#include "kernels/predictor_math_body.h"

namespace prophet {

const PredictorKernels kPortablePredictorKernels = kKernels;

const PredictorKernels& predictor_kernels() {
  [[maybe_unused]] const KernelSet* set = &kernel_set();
#if defined(__x86_64__)
  if (set == &kAvx512Kernels) return kAvx512PredictorKernels;
  if (set == &kAvx2Kernels) return kAvx2PredictorKernels;
#endif
  return kPortablePredictorKernels;
}

}  // namespace prophet
