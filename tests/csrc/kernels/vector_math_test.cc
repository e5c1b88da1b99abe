#include "kernels/vector_math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace prophet {
namespace {

TEST(VectorMath, LogarithmAgreesWithFloat64) {
  std::vector<float> x, y;
  for (float v = 1e-6f; v < 1e6f; v *= 1.0009765f) x.push_back(v);
  for (float v : {1.0f, 0.5f, 2.0f, 0.70710677f, 0.70710683f, 1.17549435e-38f, 3.4e38f})
    x.push_back(v);
  y.resize(x.size());
  log_each(x.data(), y.data(), x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double want = std::log(double(x[i]));
    EXPECT_NEAR(y[i], want, 1e-6 * std::max(1e-2, std::fabs(want))) << x[i];
  }
}

TEST(VectorMath, SigmoidAgreesWithFloat64AndSaturates) {
  std::vector<float> x, y;
  for (float v = -30; v < 30; v += 0.0137f) x.push_back(v);
  for (float v : {-1e30f, -200.0f, -88.0f, 0.0f, 88.0f, 200.0f, 1e30f}) x.push_back(v);
  y.resize(x.size());
  sigmoid_each(x.data(), y.data(), x.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    EXPECT_NEAR(y[i], 1 / (1 + std::exp(-double(x[i]))), 1e-6) << x[i];
  }
}

}  // namespace
}  // namespace prophet
