#include "sim/histogram.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

namespace prophet {
namespace {

TEST(Histogram, QuantilesAreThoseOfTheSortedValues) {
  std::mt19937_64 random(1);
  for (const double scale : {50.0, 3e3, 1e6, 4e9, 3e17}) {
    Histogram histogram;
    std::vector<Nanos> values;
    std::exponential_distribution<double> draw(1 / scale);
    for (int i = 0; i < 5000; ++i) {
      values.push_back(static_cast<Nanos>(draw(random)));
      histogram.add(values.back());
    }
    std::sort(values.begin(), values.end());
    double sum = 0;
    for (Nanos value : values) sum += double(value);
    EXPECT_NEAR(histogram.mean(), sum / 5000, 1e-9 * sum);
    EXPECT_EQ(histogram.least(), values.front());
    EXPECT_EQ(histogram.most(), values.back());
    EXPECT_EQ(histogram.count(), 5000u);
    for (const double q : {0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0}) {
      const auto rank = static_cast<std::size_t>(std::max(0.0, std::ceil(q * 5000) - 1));
      const double exact = double(values[rank]);
      EXPECT_NEAR(double(histogram.quantile(q)), exact, 0.004 * exact) << scale << " at " << q;
    }
  }
}

TEST(Histogram, EveryBucketHoldsItsOwnValues) {
  for (Nanos value = 0; value < 100'000; ++value) {
    Histogram histogram;
    histogram.add(value);
    ASSERT_EQ(histogram.quantile(0.5), value);  // clamped to the only value there is
    if (value > 300) value += value / 50;
  }
  Histogram histogram;
  histogram.add(INT64_MAX);
  histogram.add(-3);
  EXPECT_EQ(histogram.most(), INT64_MAX);
  EXPECT_EQ(histogram.least(), 0);
}

TEST(Histogram, IsZeroWhenEmpty) {
  const Histogram histogram;
  EXPECT_EQ(histogram.quantile(0.5), 0);
  EXPECT_EQ(histogram.mean(), 0);
  EXPECT_EQ(histogram.least(), 0);
}

}  // namespace
}  // namespace prophet
