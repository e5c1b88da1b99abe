// Two forecasters joined: better than either where both know something, no worse than the first
// where the second knows nothing, and otherwise the first one.
#include "predict/joint_predictor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "core/error.h"

namespace prophet {
namespace {

constexpr std::int32_t kLayers = 3, kExperts = 16, kTopK = 4;
constexpr Geometry kGeometry{kLayers, kExperts, kTopK};

// Says what its owner put into `p` for the next layer.
class Told final : public Predictor {
 public:
  Told(const std::vector<float>& p, std::int32_t width = 0, std::int32_t horizon = 1)
      : p_(p), width_(width), horizon_(horizon) {}
  std::string name() const override { return "told"; }
  std::int32_t hidden_width() const override { return width_; }
  void reset() override {}
  void observe(const Glimpse&) override {}
  bool next_use(std::int32_t, std::span<float> gaps) override {
    std::fill(gaps.begin(), gaps.end(), 7.0f);
    return true;
  }
  void forecast(std::int32_t layer, std::vector<Forecast>& out) override {
    if (layer + horizon_ >= kLayers) return;
    for (std::int32_t i = 0; i < kExperts; ++i) {
      out.push_back({{layer + horizon_, i}, p_[std::size_t(i)], horizon_});
    }
  }

 private:
  const std::vector<float>& p_;
  const std::int32_t width_, horizon_;
};

// The next layer chooses by the sum of two scores; each forecaster knows one of them.
struct World {
  std::mt19937 random{5};
  std::vector<float> first = std::vector<float>(kExperts), second = first;
  std::vector<std::int32_t> chosen;

  void draw(bool second_knows) {
    std::normal_distribution<float> normal(0, 1.5f);
    std::uniform_real_distribution<float> real(0, 1);
    chosen.clear();
    for (std::int32_t i = 0; i < kExperts; ++i) {
      const float a = normal(random), b = normal(random);
      first[std::size_t(i)] = 1 / (1 + std::exp(1.3f - a));
      second[std::size_t(i)] = 1 / (1 + std::exp(1.3f - (second_knows ? b : normal(random))));
      if (real(random) < 1 / (1 + std::exp(1.3f - a - (second_knows ? b : 0.0f)))) {
        chosen.push_back(i);
      }
    }
    chosen.resize(kTopK, -1);  // more are cut off, fewer are ids that no layer has
  }
};

struct Scores {
  double first = 0, second = 0, joint = 0;
};

// Mean squared errors over the later half of `tokens`.
Scores play(bool second_knows, int tokens) {
  World world;
  JointPredictor joint(kGeometry, std::make_unique<Told>(world.first),
                       std::make_unique<Told>(world.second));
  Scores sum;
  std::vector<Forecast> said;
  for (int token = 0; token < tokens; ++token) {
    world.draw(second_knows);
    const std::vector<std::int32_t> nothing(kTopK, -1);
    joint.observe({0, 1, kTopK, nothing.data()});
    said.clear();
    joint.forecast(0, said);
    joint.observe({1, 1, kTopK, world.chosen.data()});
    if (token < tokens / 2) continue;
    std::vector<float> p(kExperts, 0);
    for (const Forecast& one : said) p[std::size_t(one.key.expert)] = one.p;
    for (std::int32_t i = 0; i < kExperts; ++i) {
      const bool came = std::count(world.chosen.begin(), world.chosen.end(), i) > 0;
      const auto square = [&](float q) { return (q - came) * (q - came); };
      sum.first += square(world.first[std::size_t(i)]);
      sum.second += square(world.second[std::size_t(i)]);
      sum.joint += square(p[std::size_t(i)]);
    }
  }
  return sum;
}

TEST(JointPredictor, KnowsMoreThanEither) {
  const Scores sum = play(true, 4000);
  EXPECT_LT(sum.joint, 0.9 * sum.first);
  EXPECT_LT(sum.joint, 0.9 * sum.second);
}

TEST(JointPredictor, ASecondThatKnowsNothingLosesItsWeight) {
  const Scores sum = play(false, 4000);
  EXPECT_LT(sum.joint, 1.01 * sum.first);
  EXPECT_LT(sum.joint, 0.8 * sum.second);
}

TEST(JointPredictor, WhereTheSecondIsSilentItIsTheFirst) {
  const std::vector<float> p(kExperts, 0.25f);
  JointPredictor joint(kGeometry, std::make_unique<Told>(p, 0, 1), std::make_unique<Told>(p, 0, 2));
  const std::vector<std::int32_t> ids(kTopK, 1);
  joint.observe({1, 1, kTopK, ids.data()});  // two layers ahead there is none
  std::vector<Forecast> said;
  joint.forecast(1, said);
  ASSERT_EQ(said.size(), std::size_t(kExperts));
  for (const Forecast& one : said) {
    EXPECT_EQ(one.p, 0.25f);
    EXPECT_EQ(one.horizon, 1);
  }
  std::vector<float> gaps(kExperts);
  EXPECT_TRUE(joint.next_use(1, gaps));
  EXPECT_EQ(gaps.front(), 7.0f);
}

TEST(JointPredictor, TwoWidthsAreOfTwoModels) {
  const std::vector<float> p(kExperts, 0.25f);
  const auto make = [&](std::int32_t width) { return std::make_unique<Told>(p, width); };
  EXPECT_EQ(JointPredictor(kGeometry, make(0), make(5)).hidden_width(), 5);
  EXPECT_EQ(JointPredictor(kGeometry, make(5), make(0)).hidden_width(), 5);
  EXPECT_THROW(JointPredictor(kGeometry, make(4), make(5)), InvalidArgument);
}

}  // namespace
}  // namespace prophet
