// The kernels that a transformer needs, of every instruction set, against float64.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "kernels/expert_ffn.h"
#include "kernels/predictor_math.h"

namespace prophet {
namespace {

std::vector<float> floats(std::size_t n, float scale, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> out(n);
  for (float& v : out) v = normal(random);
  return out;
}

class TransformerMath : public ::testing::TestWithParam<std::string> {
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

TEST_P(TransformerMath, ProductsAreThoseOfOneVectorAfterAnother) {
  constexpr std::size_t outputs = 45, columns = 77, n = 64, padded = 96, most = 8;
  const auto wide = floats(outputs * columns, 0.3f, 7);
  std::vector<std::uint16_t> bits(wide.size());
  std::vector<float> values(wide.size());
  narrow(wide.data(), DType::f16, bits.data(), bits.size());
  widen(DType::f16, bits.data(), values.data(), bits.size());
  std::vector<std::uint16_t> tiles(n * padded, 0);
  write_tiles(bits.data(), outputs, columns, padded, tiles.data());
  constexpr std::size_t x_stride = padded + 5, y_stride = n + 3;
  const auto x = floats(most * x_stride, 1, 8);
  for (std::size_t rows = 0; rows <= most; ++rows) {
    std::vector<float> y(most * y_stride, -7);
    Products call;
    call.tiles = tiles.data();
    call.n = n;
    call.columns = padded;
    call.x = x.data();
    call.x_stride = x_stride;
    call.y = y.data();
    call.y_stride = y_stride;
    call.rows = rows;
    kernels().products(call);
    for (std::size_t r = 0; r < most; ++r) {
      for (std::size_t i = 0; i < y_stride; ++i) {
        if (r >= rows || i >= n) {
          ASSERT_EQ(y[r * y_stride + i], -7) << "written behind the end";
          continue;
        }
        double want = 0;
        for (std::size_t c = 0; c < columns && i < outputs; ++c) {
          want += double(values[i * columns + c]) * x[r * x_stride + c];
        }
        ASSERT_NEAR(y[r * y_stride + i], want, 1e-5) << rows << " rows";
      }
    }
  }
}

TEST_P(TransformerMath, LayerNormLeavesThePaddingOut) {
  constexpr std::size_t n = 64;
  for (std::size_t used : {64, 41}) {
    auto x = floats(n, 2, 1), gain = floats(n, 1, 3), bias = floats(n, 2, 4);
    for (std::size_t i = 0; i < n; ++i) x[i] = i < used ? x[i] + 3 : 0;
    for (std::size_t i = used; i < n; ++i) gain[i] = bias[i] = 0;
    std::vector<float> out(n, -1);
    Normalise call;
    call.first = x.data();
    call.gain = gain.data();
    call.bias = bias.data();
    call.out = out.data();
    call.used = used;
    call.n = n;
    kernels().layer_norm(call);
    double mean = 0, variance = 0;
    for (std::size_t i = 0; i < used; ++i) mean += double(x[i]) / double(used);
    for (std::size_t i = 0; i < used; ++i) {
      variance += (x[i] - mean) * (x[i] - mean) / double(used);
    }
    for (std::size_t i = 0; i < n; ++i) {
      const double want = (x[i] - mean) / std::sqrt(variance + 1e-5) * gain[i] + bias[i];
      EXPECT_NEAR(out[i], i < used ? want : 0, 1e-5);
    }
  }
}

TEST_P(TransformerMath, AttentionIsASoftmaxOverPositions) {
  constexpr std::size_t heads = 3, used = 20, head_n = 32, width = heads * head_n;
  for (std::size_t positions : {std::size_t(1), std::size_t(3), std::size_t(17), kMostPositions}) {
    for (float size : {1.0f, 30.0f}) {  // large scores leave one position alone
      constexpr std::size_t stride = 3 * width + 7;
      auto state = floats(positions * stride, size, 5);
      for (std::size_t p = 0; p < positions; ++p) {
        for (std::size_t i = 0; i < 3 * width; ++i) {
          if (i % head_n >= used) state[p * stride + i] = 0;
        }
      }
      std::vector<float> out(positions * width, -7);
      Attend call;
      call.query = state.data();
      call.key = state.data() + width;
      call.value = state.data() + 2 * width;
      call.stride = stride;
      call.out = out.data();
      call.out_stride = width;
      call.queries = call.positions = positions;
      call.heads = heads;
      call.head_n = head_n;
      call.scale = 0.2f;
      kernels().attend(call);
      for (std::size_t q = 0; q < positions; ++q) {
        for (std::size_t h = 0; h < heads; ++h) {
          std::vector<double> share(positions);
          for (std::size_t p = 0; p < positions; ++p) {
            for (std::size_t i = h * head_n; i < (h + 1) * head_n; ++i) {
              share[p] +=
                  double(0.2f) * state[q * stride + i] * double(state[p * stride + width + i]);
            }
          }
          const double most = *std::max_element(share.begin(), share.end());
          double total = 0;
          for (double& s : share) total += s = std::exp(s - most);
          for (std::size_t i = h * head_n; i < (h + 1) * head_n; ++i) {
            double want = 0;
            for (std::size_t p = 0; p < positions; ++p) {
              want += share[p] / total * state[p * stride + 2 * width + i];
            }
            // A score of thousands is known to 1e-7 of itself.
            ASSERT_NEAR(out[q * width + i], want, size > 1 ? 0.05 : 1e-5);
          }
        }
      }
    }
  }
}

TEST_P(TransformerMath, GeluIsExactEnoughEverywhere) {
  std::vector<float> x = {0, -0.0f, 1e-30f, -1e-30f, 1,    -1,    3,     -3,
                          6, -6,    40,     -40,     1e4f, -1e4f, 1e18f, -1e18f};
  for (float v = -8; v < 8; v += 0.01f) x.push_back(v);
  x.resize(pad_to_lanes(x.size()), 0);
  const auto bias = floats(x.size(), 0.1f, 2);
  std::vector<float> y(x.size());
  kernels().gelu(x.data(), bias.data(), y.data(), x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double v = double(x[i] + bias[i]);
    EXPECT_NEAR(y[i], 0.5 * v * std::erfc(-v / std::sqrt(2.0)), 1e-6 * std::max(1.0, std::abs(v)))
        << v;
  }
}

INSTANTIATE_TEST_SUITE_P(EveryInstructionSet, TransformerMath, ::testing::ValuesIn(kernel_isas()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace prophet
