#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include "kernels/expert_ffn.h"
#include "kernels/ffn_reference.h"

namespace prophet {
namespace {

using testing::bfloat_value;
using testing::for_each_isa;
using testing::half_value;

double value_of(DType type, std::uint16_t bits) {
  return type == DType::f16 ? half_value(bits) : bfloat_value(bits);
}

std::uint16_t narrow_one(DType type, float value) {
  std::uint16_t bits = 0;
  narrow(&value, type, &bits, 1);
  return bits;
}

std::uint16_t infinity_of(DType type) { return type == DType::f16 ? 0x7c00 : 0x7f80; }

TEST(Widen, EveryPatternOfBothHalves) {
  std::vector<std::uint16_t> patterns(65536);
  for (std::size_t i = 0; i < patterns.size(); ++i) patterns[i] = static_cast<std::uint16_t>(i);
  for_each_isa([&](const std::string& isa) {
    for (DType type : {DType::f16, DType::bf16}) {
      std::vector<float> wide(patterns.size());
      widen(type, patterns.data(), wide.data(), wide.size());
      for (std::size_t i = 0; i < wide.size(); ++i) {
        const double expected = value_of(type, patterns[i]);
        if (std::isnan(expected)) {
          ASSERT_TRUE(std::isnan(wide[i])) << isa << " pattern " << i;
        } else {
          ASSERT_EQ(wide[i], expected) << isa << " pattern " << i;
          ASSERT_EQ(std::signbit(wide[i]), std::signbit(expected)) << isa << " pattern " << i;
        }
      }
    }
  });
}

TEST(Narrow, EveryPatternComesBack) {
  for_each_isa([&](const std::string& isa) {
    for (DType type : {DType::f16, DType::bf16}) {
      for (std::uint32_t i = 0; i < 65536; ++i) {
        const auto bits = static_cast<std::uint16_t>(i);
        const double value = value_of(type, bits);
        const std::uint16_t back = narrow_one(type, static_cast<float>(value));
        if (std::isnan(value)) {
          ASSERT_TRUE(std::isnan(value_of(type, back))) << isa << " pattern " << i;
        } else {
          ASSERT_EQ(back, bits) << isa;
        }
      }
    }
  });
}

// Between two neighbours: below the middle down, above it up, in the middle to the even one. The
// middle of two halves is exact in float32; past the largest finite one comes infinity.
TEST(Narrow, NearestAndTiesToEven) {
  for_each_isa([&](const std::string& isa) {
    for (DType type : {DType::f16, DType::bf16}) {
      const double step_past_largest = type == DType::f16 ? 0x1p16 : 0x1p128;
      for (std::uint16_t low = 0; low < infinity_of(type); ++low) {
        const auto high = static_cast<std::uint16_t>(low + 1);
        const double above = high == infinity_of(type) ? step_past_largest : value_of(type, high);
        const float middle = static_cast<float>((value_of(type, low) + above) / 2);
        const std::uint16_t even = low % 2 == 0 ? low : high;
        ASSERT_EQ(narrow_one(type, middle), even) << isa << " after pattern " << low;
        ASSERT_EQ(narrow_one(type, std::nextafter(middle, 0.0f)), low) << isa;
        ASSERT_EQ(narrow_one(type, std::nextafter(middle, INFINITY)), high) << isa;
        ASSERT_EQ(narrow_one(type, -middle), even | 0x8000) << isa;
      }
    }
  });
}

TEST(Narrow, OverflowAndNan) {
  for_each_isa([&](const std::string& isa) {
    EXPECT_EQ(narrow_one(DType::f16, 65519.0f), 0x7bff) << isa;
    EXPECT_EQ(narrow_one(DType::f16, 65520.0f), 0x7c00) << isa;
    EXPECT_EQ(narrow_one(DType::f16, -1e30f), 0xfc00) << isa;
    EXPECT_EQ(narrow_one(DType::bf16, 3.4e38f), 0x7f80) << isa;
    EXPECT_EQ(narrow_one(DType::bf16, -INFINITY), 0xff80) << isa;
    // A NaN whose payload lies in the bits that are cut off must not become infinity.
    const float nan = std::bit_cast<float>(0x7f800001u);
    EXPECT_TRUE(std::isnan(half_value(narrow_one(DType::f16, nan)))) << isa;
    EXPECT_TRUE(std::isnan(bfloat_value(narrow_one(DType::bf16, nan)))) << isa;
  });
}

TEST(Conversions, EveryLengthTouchesItsElementsOnly) {
  for_each_isa([&](const std::string& isa) {
    for (DType type : {DType::f32, DType::f16, DType::bf16}) {
      for (std::size_t n = 0; n <= 40; ++n) {
        const std::vector<float> source(n, 1.5f);
        std::vector<std::byte> packed(1 + n * size_of(type) + 1, std::byte{0xa5});
        narrow(source.data(), type, packed.data() + 1, n);
        EXPECT_EQ(packed.front(), std::byte{0xa5}) << isa;
        EXPECT_EQ(packed.back(), std::byte{0xa5}) << isa << " n=" << n;
        std::vector<float> back(n + 1, -1.0f);
        widen(type, packed.data() + 1, back.data(), n);
        for (std::size_t i = 0; i < n; ++i) EXPECT_EQ(back[i], 1.5f) << isa << " n=" << n;
        EXPECT_EQ(back[n], -1.0f) << isa << " n=" << n;
      }
    }
  });
}

TEST(WeightedSum, EqualsFloat64AndSkipsNull) {
  std::mt19937 random(3);
  for (std::size_t n : {1u, 5u, 511u, 512u, 513u, 1400u}) {
    std::array<std::vector<float>, 6> parts;
    std::array<const float*, 6> pointers{};
    const auto weights = testing::random_floats(6, random);
    for (std::size_t k = 0; k < parts.size(); ++k) {
      parts[k] = testing::random_floats(n, random);
      pointers[k] = k == 2 || k == 5 ? nullptr : parts[k].data();
    }
    std::vector<float> out(n + 1, -7.0f);
    weighted_sum(weights.data(), pointers.data(), 6, out.data(), n);
    for (std::size_t i = 0; i < n; ++i) {
      double expected = 0;
      for (int k : {0, 1, 3, 4}) expected += static_cast<double>(weights[k]) * parts[k][i];
      EXPECT_NEAR(out[i], expected, 4e-6) << "n=" << n << " i=" << i;
    }
    EXPECT_EQ(out[n], -7.0f) << "n=" << n;
  }
}

// float32 addition in ascending order: 1e8 + 1 - 1e8 is 0, any other order gives 1.
TEST(WeightedSum, AddsInAscendingOrder) {
  const float big = 1e8f, one = 1.0f;
  const float weights[] = {1.0f, 1.0f, -1.0f};
  const float* parts[] = {&big, &one, &big};
  float out = 5.0f;
  weighted_sum(weights, parts, 3, &out, 1);
  EXPECT_EQ(out, 0.0f);
}

TEST(WeightedSum, OfNothingIsZero) {
  float out[2] = {5.0f, 6.0f};
  weighted_sum(nullptr, nullptr, 0, out, 2);
  EXPECT_EQ(out[0], 0.0f);
  EXPECT_EQ(out[1], 0.0f);
}

}  // namespace
}  // namespace prophet
