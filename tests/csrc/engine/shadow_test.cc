#include "engine/shadow.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "policy/traces.h"

namespace prophet {
namespace {

// A trace and, for each step, the turns until each expert of the layer is used again, at most 8.
struct Trace {
  Trace(const Geometry& geometry, std::int32_t tokens, std::uint64_t seed)
      : steps(testing::make_trace(geometry, tokens, true, seed)), gaps(steps.size()) {
    const std::int32_t layers = geometry.layers, experts = geometry.experts_per_layer;
    for (std::int64_t i = std::ssize(steps) - 1; i >= 0; --i) {
      gaps[i].assign(experts, 8);
      if (i + layers >= std::ssize(steps)) continue;
      for (std::int32_t e = 0; e < experts; ++e) {
        gaps[i][e] = std::min(8.0f, gaps[i + layers][e] + 1);
      }
      for (std::int32_t e : steps[i + layers].experts) gaps[i][e] = 1;
    }
  }
  std::vector<float> reversed(std::size_t i) const {
    std::vector<float> out = gaps[i];
    for (float& gap : out) gap = 9 - gap;
    return out;
  }
  std::vector<testing::Step> steps;
  std::vector<std::vector<float>> gaps;
};

struct Case {
  const char* name;
  Geometry geometry;
  std::int32_t slots;
  PoolScope scope;
};

class ShadowTest : public ::testing::TestWithParam<Case> {
 protected:
  const Geometry& geometry() const { return GetParam().geometry; }
  Shadow make() const { return {geometry(), GetParam().slots, GetParam().scope}; }
};

INSTANTIATE_TEST_SUITE_P(
    Any, ShadowTest,
    ::testing::Values(Case{"OneLayer", {1, 32, 4}, 10, PoolScope::global},
                      Case{"FewLayers", {3, 16, 2}, 16, PoolScope::global},
                      Case{"EveryOther", {13, 16, 2}, 64, PoolScope::global},
                      Case{"Sampled", {24, 32, 4}, 192, PoolScope::global},
                      Case{"PerLayer", {8, 16, 2}, 40, PoolScope::per_layer},
                      Case{"PerLayerUneven", {24, 32, 4}, 205, PoolScope::per_layer}),
    [](const auto& info) { return info.param.name; });

TEST_P(ShadowTest, TrueNextUsesAreTrustedThroughout) {
  const Trace trace(geometry(), 600, 1);
  Shadow shadow = make();
  for (std::size_t i = 0; i < trace.steps.size(); ++i) {
    shadow.step(trace.steps[i].layer, trace.steps[i].experts, trace.gaps[i]);
    ASSERT_TRUE(shadow.trusts()) << "step " << i;
  }
}

TEST_P(ShadowTest, ReversedGapsLoseTrustSoonAndTrueOnesGetItBack) {
  const Trace trace(geometry(), 3000, 2);
  Shadow shadow = make();
  std::size_t i = 0;
  const auto step = [&](const std::vector<float>& gaps) {
    shadow.step(trace.steps[i].layer, trace.steps[i].experts, gaps);
    ++i;
  };
  const std::size_t soon = std::size_t(geometry().layers) * 200;  // 200 tokens
  while (shadow.trusts() && i < soon) step(trace.reversed(i));
  EXPECT_FALSE(shadow.trusts());
  for (std::size_t end = i + soon; i < end; step(trace.reversed(i))) EXPECT_FALSE(shadow.trusts());
  while (!shadow.trusts() && i + 1 < trace.steps.size()) step(trace.gaps[i]);
  EXPECT_TRUE(shadow.trusts());
  // And loses it again.
  const std::size_t again = i;
  while (shadow.trusts() && i + 1 < trace.steps.size()) step(trace.reversed(i));
  EXPECT_FALSE(shadow.trusts());
  EXPECT_LT(i, again + 2 * soon);
}

// Without a word from the predictor the two caches are one: it is neither doubted nor made worse.
TEST_P(ShadowTest, SilenceIsTrusted) {
  const Trace trace(geometry(), 500, 3);
  Shadow shadow = make();
  for (const testing::Step& step : trace.steps) {
    shadow.step(step.layer, step.experts, {});
    ASSERT_TRUE(shadow.trusts());
  }
}

TEST_P(ShadowTest, TheSameStepsGiveTheSameTrust) {
  const Trace trace(geometry(), 300, 4);
  Shadow a = make(), b = make();
  std::mt19937 random(4);
  for (std::size_t i = 0; i < trace.steps.size(); ++i) {
    std::vector<float> gaps = trace.gaps[i];
    std::shuffle(gaps.begin(), gaps.end(), random);
    a.step(trace.steps[i].layer, trace.steps[i].experts, gaps);
    b.step(trace.steps[i].layer, trace.steps[i].experts, gaps);
    ASSERT_EQ(a.trusts(), b.trusts());
  }
}

// Repetitions, as of a batch, and ids of other ranks change nothing.
TEST_P(ShadowTest, RepetitionsAndForeignIdsAreIgnored) {
  const Trace trace(geometry(), 400, 5);
  Shadow shadow = make(), plain = make();
  for (std::size_t i = 0; i < trace.steps.size(); ++i) {
    const auto gaps = i % 3 ? trace.reversed(i) : trace.gaps[i];
    plain.step(trace.steps[i].layer, trace.steps[i].experts, gaps);
    std::vector<std::int32_t> noisy;
    for (std::int32_t expert : trace.steps[i].experts) {
      noisy.insert(noisy.end(), {expert, INT32_MAX, -1, expert, geometry().experts_per_layer});
    }
    shadow.step(trace.steps[i].layer, noisy, gaps);
    ASSERT_EQ(shadow.trusts(), plain.trusts()) << "step " << i;
  }
}

// A batch that is served in waves elsewhere leaves no trace here; the steps between still count.
TEST(Shadow, ABatchLargerThanThePoolIsNotCompared) {
  const Geometry geometry{1, 32, 4};
  const Trace trace(geometry, 400, 6);
  Shadow shadow(geometry, 10, PoolScope::global), plain(geometry, 10, PoolScope::global);
  std::vector<std::int32_t> all;
  for (std::int32_t e = 0; e < 32; ++e) all.push_back(e);
  bool distrusted = false;
  for (std::size_t i = 0; i < trace.steps.size(); ++i) {
    for (Shadow* each : {&shadow, &plain}) {
      each->step(0, trace.steps[i].experts, trace.reversed(i));
    }
    shadow.step(0, all, trace.reversed(i));
    ASSERT_EQ(shadow.trusts(), plain.trusts()) << "step " << i;
    distrusted = distrusted || !shadow.trusts();
  }
  EXPECT_TRUE(distrusted);
}

}  // namespace
}  // namespace prophet
