#include "kernels/vector_math.h"

#include <algorithm>
#include <bit>

#include "kernels/kernel_set.h"

namespace prophet {
namespace {

// 2^k * exp(r) with |r| <= ln 2 / 2 and a Taylor polynomial: its first left-out term is 5e-9.
inline float exponential(float x) {
  constexpr float kLog2e = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  const float clamped = std::clamp(x, -87.0f, 87.0f);
  const float shifted = clamped * kLog2e + (clamped < 0 ? -0.5f : 0.5f);
  const std::int32_t k = static_cast<std::int32_t>(shifted);
  const float r = (clamped - float(k) * kLn2High) - float(k) * kLn2Low;
  float sum = 1.0f / 5040;
  sum = sum * r + 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  return sum * std::bit_cast<float>((k + 127) << 23);
}

// log(2^e * m), m in [sqrt(1/2), sqrt(2)): 2 atanh(s), s = (m - 1) / (m + 1), |s| < 0.172.
inline float logarithm(float x) {
  constexpr float kLn2 = 0.693147181f;
  const std::int32_t bits = std::bit_cast<std::int32_t>(x);
  // Moves the cut of the exponent from 1 to sqrt(1/2).
  const std::int32_t offset = bits - 0x3f3504f3;
  const std::int32_t e = offset >> 23;
  const float m = std::bit_cast<float>(bits - e * (1 << 23));
  const float s = (m - 1) / (m + 1), s2 = s * s;
  float sum = 1.0f / 11;
  sum = sum * s2 + 1.0f / 9;
  sum = sum * s2 + 1.0f / 7;
  sum = sum * s2 + 1.0f / 5;
  sum = sum * s2 + 1.0f / 3;
  sum = sum * s2 + 1.0f;
  return 2 * s * sum + float(e) * kLn2;
}

}  // namespace

void dot_rows_f16(const std::uint16_t* rows, std::size_t count, std::size_t columns, const float* x,
                  float* y) {
  DotRows call;
  call.rows = reinterpret_cast<const std::byte*>(rows);
  call.row_count = count;
  call.columns = columns;
  call.inputs = &x;
  call.outputs = &y;
  kernel_set().dot_f16(call);
}

void add_row_f16(const std::uint16_t* row, std::size_t n, float scale, float* scratch, float* y) {
  kernel_set().widen_f16(row, scratch, n);
  for (std::size_t i = 0; i < n; ++i) y[i] += scale * scratch[i];
}

void log_each(const float* x, float* y, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) y[i] = logarithm(x[i]);
}

void sigmoid_each(const float* x, float* y, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) y[i] = 1 / (1 + exponential(-x[i]));
}

}  // namespace prophet
