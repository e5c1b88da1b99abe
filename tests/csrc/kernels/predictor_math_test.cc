// Predictor kernels of every instruction set against float64.
#include "kernels/predictor_math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "kernels/expert_ffn.h"

namespace prophet {
namespace {

std::vector<float> floats(std::size_t n, float scale, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> out(n);
  for (float& v : out) v = normal(random);
  return out;
}

// float16 bits and, in float32, what they mean.
struct Halves {
  Halves(std::size_t n, float scale, std::uint32_t seed) : bits(n), values(n) {
    const auto wide = floats(n, scale, seed);
    narrow(wide.data(), DType::f16, bits.data(), n);
    widen(DType::f16, bits.data(), values.data(), n);
  }
  std::vector<std::uint16_t> bits;
  std::vector<float> values;
};

double sigmoid(double v) { return 1 / (1 + std::exp(-v)); }

class PredictorMath : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    before_ = kernel_isa();
    set_kernel_isa(GetParam());
  }
  void TearDown() override { set_kernel_isa(before_); }
  const PredictorKernels& kernels() const { return predictor_kernels(); }

 private:
  std::string before_;
};

TEST_P(PredictorMath, RowsAreAddedToWhatIsKept) {
  constexpr std::size_t n = 96;
  for (std::size_t count : {0, 1, 4, 33}) {
    const Halves rows(std::max<std::size_t>(count, 1) * n, 1, 3);
    const auto scales = floats(count, 1, 4);
    auto y = floats(n, 1, 5), total = floats(n, 1, 6);
    const auto y0 = y, total0 = total;
    std::vector<const std::uint16_t*> places;
    for (std::size_t k = 0; k < count; ++k) places.push_back(rows.bits.data() + k * n);
    RowSum call;
    call.rows = places.data();
    call.scales = scales.data();
    call.count = count;
    call.keep = 0.75f;
    call.y = y.data();
    call.total = total.data();
    call.n = n;
    kernels().add_rows(call);
    for (std::size_t i = 0; i < n; ++i) {
      double want = 0.75 * y0[i];
      for (std::size_t k = 0; k < count; ++k) want += double(scales[k]) * rows.values[k * n + i];
      ASSERT_NEAR(y[i], want, 1e-5);
      ASSERT_NEAR(total[i], total0[i] + want, 1e-5);
    }
  }
}

TEST_P(PredictorMath, TilesMultiplyLikeTheMatrix) {
  constexpr std::size_t outputs = 45, columns = 77, rows = 64, padded = 96;
  const Halves matrix(outputs * columns, 0.3f, 7);
  auto x = floats(padded, 1, 8);
  std::fill(x.begin() + columns, x.end(), 0.0f);
  std::vector<std::uint16_t> halves(rows * padded, 0);
  std::vector<float> singles(rows * padded, 0);
  write_tiles(matrix.bits.data(), outputs, columns, padded, halves.data());
  write_tiles(matrix.values.data(), outputs, columns, padded, singles.data());
  std::vector<float> a(rows, -1), b(rows, -1);
  kernels().dot_tiles_f16(halves.data(), rows, padded, x.data(), a.data());
  kernels().dot_tiles_f32(singles.data(), rows, padded, x.data(), b.data());
  for (std::size_t i = 0; i < rows; ++i) {
    double want = 0;
    for (std::size_t c = 0; c < columns && i < outputs; ++c) {
      want += double(matrix.values[i * columns + c]) * x[c];
    }
    EXPECT_NEAR(a[i], want, 1e-5);
    EXPECT_EQ(a[i], b[i]);
  }
}

TEST_P(PredictorMath, ASharedSumFollowsItsPart) {
  constexpr std::size_t n = 64;
  const auto fresh = floats(n, 1, 1);
  auto kept = floats(n, 1, 2), sum = floats(n, 1, 3);
  const auto kept0 = kept, sum0 = sum;
  kernels().exchange(fresh.data(), kept.data(), sum.data(), n);
  EXPECT_EQ(kept, fresh);
  for (std::size_t i = 0; i < n; ++i)
    EXPECT_NEAR(sum[i], double(sum0[i]) + fresh[i] - kept0[i], 1e-6);
  kernels().fade(0.5f, kept.data(), n);
  for (std::size_t i = 0; i < n; ++i) EXPECT_EQ(kept[i], 0.5f * fresh[i]);
}

TEST_P(PredictorMath, NormalisesWhatIsUsedAndLeavesThePaddingOut) {
  constexpr std::size_t n = 64;
  for (std::size_t used : {64, 41}) {
    auto first = floats(n, 1, 1), second = floats(n, 1, 2), gain = floats(n, 1, 3),
         bias = floats(n, 2, 4);
    for (std::size_t i = 0; i < n; ++i) {
      first[i] += 3;
      if (i >= used) first[i] = second[i] = gain[i] = bias[i] = 0;
    }
    std::vector<float> out(n, -1);
    Normalise call;
    call.first = first.data();
    call.second = second.data();
    call.gain = gain.data();
    call.bias = bias.data();
    call.out = out.data();
    call.used = used;
    call.n = n;
    kernels().normalise(call);
    double mean = 0, variance = 0;
    for (std::size_t i = 0; i < used; ++i) mean += (double(first[i]) + second[i]) / double(used);
    for (std::size_t i = 0; i < used; ++i) {
      variance += std::pow(double(first[i]) + second[i] - mean, 2) / double(used);
    }
    for (std::size_t i = 0; i < n; ++i) {
      double want = 0;
      if (i < used) {
        const double y =
            (double(first[i]) + second[i] - mean) / std::sqrt(variance + 1e-5) * gain[i] + bias[i];
        want = y * std::clamp(y + 3, 0.0, 6.0) / 6;
      }
      EXPECT_NEAR(out[i], want, 1e-5 * std::max(1.0, std::fabs(want))) << i;
    }
  }
}

// One head of weight one and nothing else: its raw logit is the logarithm alone.
TEST_P(PredictorMath, LogarithmsAgreeWithFloat64) {
  std::vector<float> x;
  for (float v = 1e-6f; v < 1e6f; v *= 1.0137f) x.push_back(v);
  for (float v : {1.0f, 0.5f, 2.0f, 0.70710677f, 0.70710683f, 1.17549435e-38f, 3.4e38f})
    x.push_back(v);
  x.resize(pad_to_lanes(x.size()), 1.0f);
  const std::vector<float> none(x.size(), 0.0f);
  const float one = 1, gap_weight[] = {2, 1};
  std::vector<float> scratch(kPredictorLanes), raw(x.size()), gaps(x.size());
  Heads call;
  call.averages_count = 1;
  call.heads = 1;
  call.averages = x.data();
  call.own_weight = &one;
  call.own_bias = none.data();
  call.scale = &one;
  call.gap_weight = gap_weight;
  call.scratch = scratch.data();
  call.raw = raw.data();
  call.gaps = gaps.data();
  call.n = x.size();
  kernels().heads(call);
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double want = std::log(double(x[i]));
    EXPECT_NEAR(raw[i], want, 1e-6 * std::max(1e-2, std::fabs(want))) << x[i];
    EXPECT_NEAR(gaps[i], 2 + sigmoid(-want), 1e-6) << x[i];
  }
}

TEST_P(PredictorMath, HeadsMixFeaturesAndLatents) {
  constexpr std::size_t n = 64, experts = 50, D = 3, more = 2, M = 2, N = 4;
  auto averages = floats(D * n, 1, 1);
  for (float& v : averages) v = std::fabs(v);
  const auto extra = floats(more * n, 1, 2), outputs = floats(M * experts + n, 1, 3),
             own_weight = floats(N * (D + more), .5f, 4), own_bias = floats(N * n, 1, 5),
             mix = floats(N * M, 1, 6), scale = floats(N, 1, 7), gap_weight = floats(1 + N, 2, 8);
  std::vector<float> scratch((D + more) * kPredictorLanes), raw(n), gaps(n);
  Heads call{D,
             more,
             M,
             N,
             averages.data(),
             0.004f,
             extra.data(),
             outputs.data(),
             experts,
             own_weight.data(),
             own_bias.data(),
             mix.data(),
             scale.data(),
             gap_weight.data(),
             scratch.data(),
             raw.data(),
             gaps.data(),
             n};
  kernels().heads(call);
  for (std::size_t i = 0; i < experts; ++i) {
    double gap = gap_weight[0];
    for (std::size_t h = 0; h < N; ++h) {
      double logit = own_bias[h * n + i];
      for (std::size_t d = 0; d < D; ++d) {
        logit += own_weight[h * (D + more) + d] * std::log(averages[d * n + i] + 0.004);
      }
      for (std::size_t f = 0; f < more; ++f) {
        logit += double(own_weight[h * (D + more) + D + f]) * extra[f * n + i];
      }
      for (std::size_t m = 0; m < M; ++m)
        logit += double(mix[h * M + m]) * outputs[m * experts + i];
      if (h == 0) {
        EXPECT_NEAR(raw[i], logit, 1e-5);
      }
      gap += gap_weight[1 + h] * sigmoid(-scale[h] * logit);
    }
    EXPECT_NEAR(gaps[i], std::max(1.0, gap), 1e-5);
  }
}

TEST_P(PredictorMath, SigmoidsAgreeWithFloat64AndSaturate) {
  std::vector<float> x;
  for (float v = -30; v < 30; v += 0.0137f) x.push_back(v);
  for (float v : {-1e30f, -200.0f, -88.0f, 0.0f, 88.0f, 200.0f, 1e30f}) x.push_back(v);
  x.resize(pad_to_lanes(x.size()), 0.0f);
  const std::size_t n = x.size();
  const auto dots = floats(n, 1, 1), raw = floats(n, 1, 2);
  const Halves pairs(2 * n, 1, 3);
  const std::uint16_t* const rows[] = {pairs.bits.data(), pairs.bits.data() + n};
  std::vector<float> p(n);
  for (std::size_t count : {0, 2}) {
    Ahead call;
    call.dots = dots.data();
    call.raw = raw.data();
    call.bias = x.data();
    call.pairs = rows;
    call.pair_count = count;
    call.prior = 0.5f;
    call.scale = 1.25f;
    call.p = p.data();
    call.n = n;
    kernels().ahead(call);
    for (std::size_t i = 0; i < n; ++i) {
      double logit = double(dots[i]) + 0.5 * raw[i] + x[i];
      if (count == 2) logit += double(pairs.values[i]) + pairs.values[n + i];
      EXPECT_NEAR(p[i], sigmoid(1.25 * logit), 2e-6) << x[i];
      EXPECT_GE(p[i], 0);
      EXPECT_LE(p[i], 1);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(EveryInstructionSet, PredictorMath, ::testing::ValuesIn(kernel_isas()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace prophet
