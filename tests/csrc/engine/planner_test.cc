#include "engine/planner.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

namespace prophet {
namespace {

constexpr Geometry kGeometry{4, 8, 2};

PrefetchRule rule_of(std::int32_t last, float least = 0, bool conscience = true) {
  PrefetchRule rule;
  rule.last = last;
  rule.least = least;
  rule.conscience = conscience;
  return rule;
}

// A planner beside an empty cache, whose link is idle and fast unless said otherwise.
struct Bench {
  explicit Bench(const PrefetchRule& rule, double chunk = .25)
      : planner(kGeometry, rule, chunk),
        cache(kGeometry, 8, PoolScope::global, make_eviction_policy("lru", kGeometry)) {}

  void say(std::vector<Forecast> forecasts) { planner.heard(planner.ticks(), forecasts); }
  const std::vector<Prefetch>& plan() {
    planner.plan(cache, pace, wanted);
    return wanted;
  }
  std::vector<ExpertKey> keys() {
    std::vector<ExpertKey> out;
    for (const Prefetch& wish : plan()) out.push_back(wish.key);
    return out;
  }
  // A layer step whose router asks for `experts`.
  void step(std::int32_t layer, std::vector<std::int32_t> experts) {
    planner.tick();
    planner.asked(layer, experts);
  }
  // Layer steps without a wish, although one is forecast, until there is one again.
  std::int64_t silence() {
    std::int64_t steps = 0;
    for (; plan().empty(); ++steps) {
      planner.tick();
      say({{{1, 1}, 1, 1}});
      if (steps > 1 << 17) break;
    }
    return steps;
  }

  Planner planner;
  Cache cache;
  Planner::Pace pace{.expert = 1, .step = 1, .idle = 1};
  std::vector<Prefetch> wanted;
};

TEST(Planner, TheNewestWordOnALayerReplacesTheOlder) {
  Bench bench(rule_of(4));
  bench.planner.tick();
  bench.say({{{2, 1}, .9f, 2}, {{3, 1}, .8f, 3}});
  EXPECT_EQ(bench.keys(), (std::vector<ExpertKey>{{2, 1}, {3, 1}}));
  bench.planner.tick();
  bench.say({{{2, 5}, .7f, 1}});  // layer 3 is not spoken of: the older word stands
  EXPECT_EQ(bench.keys(), (std::vector<ExpertKey>{{3, 1}, {2, 5}}));
  // An older word that comes late, as from a worker, changes nothing.
  bench.planner.heard(1, std::vector<Forecast>{{{2, 7}, 1, 2}});
  EXPECT_EQ(bench.keys(), (std::vector<ExpertKey>{{3, 1}, {2, 5}}));
}

// Before a layer runs something is said of it once more, in the same step.
TEST(Planner, OfTwoWordsOfOneStepTheLaterStands) {
  Bench bench(rule_of(4));
  bench.planner.tick();
  bench.say({{{2, 1}, .9f, 1}, {{3, 1}, .8f, 2}});
  bench.say({{{2, 5}, .7f, 1}, {{2, 6}, .6f, 1}});
  EXPECT_EQ(bench.keys(), (std::vector<ExpertKey>{{3, 1}, {2, 5}, {2, 6}}));
}

TEST(Planner, WhatHasRunIsForgotten) {
  Bench bench(rule_of(4));
  bench.planner.tick();
  bench.say({{{1, 1}, .9f, 1}, {{2, 1}, .8f, 2}});
  bench.step(1, {1, 2});
  EXPECT_EQ(bench.keys(), (std::vector<ExpertKey>{{2, 1}}));
  bench.planner.tick();  // layer 2 runs, although its router was not heard
  EXPECT_TRUE(bench.plan().empty());
}

// A layer's own next turn is `layers` ahead: it is no word on the turn that is running.
TEST(Planner, AHorizonMayPassIntoTheNextToken) {
  Bench bench(rule_of(kGeometry.layers));
  bench.step(2, {0, 1});
  bench.say({{{2, 3}, .9f, 4}, {{1, 3}, .8f, 3}});
  for (std::int32_t layer : {3, 0, 1}) {
    const auto wanted = bench.plan();
    ASSERT_FALSE(wanted.empty());
    for (const Prefetch& wish : wanted) EXPECT_EQ(wish.deadline, wish.key.layer == 2 ? 5 : 4);
    bench.step(layer, {3, 4});
  }
  EXPECT_EQ(bench.keys(), (std::vector<ExpertKey>{{2, 3}}));
  bench.step(2, {3, 4});
  EXPECT_TRUE(bench.plan().empty());
}

TEST(Planner, OnlyWhatIsNotHereAndWithinReachIsWished) {
  Bench bench(rule_of(2, .5f));
  for (std::int32_t e = 0; e < 4; ++e) {
    ASSERT_TRUE(bench.cache.admit({1, e}));
    if (e > 0) bench.cache.loading({1, e});
    if (e > 1) bench.cache.landed({1, e});
    if (e > 2) bench.cache.lease({1, e});
  }
  bench.planner.tick();
  bench.say({{{1, 0}, 1, 1},  // queued
             {{1, 1}, 1, 1},  // loading: to be wished on, or it is cancelled
             {{1, 2}, 1, 1},  // resident
             {{1, 3}, 1, 1},  // leased
             {{2, 0}, .4f, 2},
             {{2, 1}, .6f, 2},
             {{3, 0}, 1, 3}});
  EXPECT_EQ(bench.keys(), (std::vector<ExpertKey>{{1, 1}, {2, 1}}));
}

TEST(Planner, HostileForecastsAreNotWished) {
  const float nan = std::nanf(""), inf = std::numeric_limits<float>::infinity();
  Bench bench(rule_of(4));
  bench.planner.tick();
  bench.say({{{-1, 0}, 1, 1},
             {{4, 0}, 1, 1},
             {{0, -1}, 1, 1},
             {{0, 8}, 1, 1},
             {{1, 0}, 1, 0},
             {{1, 0}, 1, -5},
             {{1, 0}, 1, INT32_MAX},
             {{2, 0}, nan, 2},
             {{2, 1}, -inf, 2}});
  EXPECT_TRUE(bench.plan().empty());
  bench.step(2, {0, 1});
  // No probability is above 1, whatever is said: policies compute with it.
  bench.say({{{3, 0}, inf, 1}, {{3, 1}, 7, 1}});
  for (const Prefetch& wish : bench.plan()) EXPECT_LE(wish.confidence, 1);
  bench.step(3, {0, 1});
  // A layer that was lied about can be trusted again.
  for (int turn = 0; turn < 400; ++turn) {
    bench.say({{{3, 0}, 1, 1}});
    bench.step(3, {0, 1});
  }
  bench.say({{{3, 0}, 1, 1}});
  ASSERT_EQ(bench.plan().size(), 1u);
  EXPECT_GT(bench.plan()[0].confidence, .9f);
}

TEST(Planner, TrustFallsWithFailedForecastsOfTheLayerAndComesBack) {
  Bench bench(rule_of(4, .2f));
  const auto confidence = [&](std::int32_t layer) {
    bench.say({{{layer, 1}, .9f, 1}});
    const auto& wanted = bench.plan();
    return wanted.empty() ? 0.f : wanted[0].confidence;
  };
  EXPECT_FLOAT_EQ(confidence(1), .9f);
  float last = .9f;
  int turns = 0;
  for (; last > 0 && turns < 100; ++turns) {
    bench.step(1, {4, 5});
    const float now = confidence(1);
    EXPECT_LT(now, last);
    last = now;
  }
  EXPECT_LT(turns, 50);  // below `least`: nothing of this layer is wished
  bench.step(1, {4, 5});
  EXPECT_FLOAT_EQ(confidence(2), .9f);  // another layer's trust is its own
  bench.step(2, {1, 2});
  for (int turn = 0; turn < 400; ++turn) {
    confidence(1);
    bench.step(1, {1, 2});
  }
  EXPECT_FLOAT_EQ(confidence(1), .9f);  // never more than what was said
}

TEST(Planner, CalibratedForecastsKeepTheirTrust) {
  std::mt19937 random(5);
  Bench bench(rule_of(4));
  double sum = 0;
  for (int turn = 0; turn < 3000; ++turn) {
    bench.say({{{1, 1}, .3f, 1}, {{1, 2}, .7f, 1}});
    for (const Prefetch& wish : bench.plan()) sum += double(wish.confidence);
    std::vector<std::int32_t> experts = {0};
    if (random() % 10 < 3) experts.push_back(1);
    if (random() % 10 < 7) experts.push_back(2);
    bench.step(1, experts);
  }
  EXPECT_GT(sum / 3000, .9);
  EXPECT_LE(sum / 3000, 1.0);
}

TEST(Planner, WithoutAConscienceNothingIsDoubted) {
  Bench bench(rule_of(4, .5f, false));
  for (int turn = 0; turn < 300; ++turn) {
    bench.say({{{1, 1}, .9f, 1}});
    ASSERT_EQ(bench.plan().size(), 1u);
    EXPECT_FLOAT_EQ(bench.plan()[0].confidence, .9f);
    bench.step(1, {4, 5});
    bench.planner.regretted();
    bench.planner.delayed();
  }
  EXPECT_EQ(bench.planner.steps_held(), 0u);
}

TEST(Planner, RegretsBeyondBenefitsBringSilenceTwiceAsLongEachTime) {
  Bench bench(rule_of(4));
  std::int64_t last = 0, held = 0;
  for (int time = 0; time < 5; ++time) {
    for (int i = 0; i < 3; ++i) bench.planner.regretted();
    bench.planner.tick();
    bench.say({{{1, 1}, 1, 1}});
    const std::int64_t steps = bench.silence();
    EXPECT_GT(steps, 100);
    if (time > 0) EXPECT_EQ(steps, 2 * last);
    last = steps;
    held += steps;
    EXPECT_EQ(std::int64_t(bench.planner.steps_held()), held);
  }
}

TEST(Planner, SilenceHasALongest) {
  Bench bench(rule_of(4));
  std::int64_t last = 0, longest = 0;
  for (int time = 0; time < 12; ++time) {
    for (int i = 0; i < 3; ++i) bench.planner.regretted();
    bench.planner.tick();
    longest = last;
    last = bench.silence();
  }
  EXPECT_EQ(last, longest);
  EXPECT_LE(last, 1 << 16);
}

TEST(Planner, WhatPaysIsNotSilenced) {
  Bench bench(rule_of(4));
  for (int step = 0; step < 5000; ++step) {
    bench.planner.tick();
    bench.planner.paid(1);
    if (step % 2) bench.planner.regretted();
    bench.say({{{1, 1}, 1, 1}});
    ASSERT_FALSE(bench.plan().empty()) << step;
  }
  EXPECT_EQ(bench.planner.steps_held(), 0u);
}

TEST(Planner, AfterPayingItsNextSilenceIsAShortOneAgain) {
  Bench bench(rule_of(4));
  const auto quarrel = [&](int regrets) {
    for (int i = 0; i < regrets; ++i) bench.planner.regretted();
    bench.planner.tick();
    return bench.silence();
  };
  const std::int64_t first = quarrel(3);
  EXPECT_EQ(quarrel(3), 2 * first);
  for (int i = 0; i < 20; ++i) {
    bench.planner.paid(1);
    bench.planner.tick();
  }
  EXPECT_EQ(quarrel(40), first);
}

TEST(Planner, ADelayCostsHalfAChunk) {
  // Delays of half of a quarter: 16 of them are two transfers and decide nothing, one more does.
  Bench bench(rule_of(4), .25);
  for (int i = 0; i < 15; ++i) bench.planner.delayed();
  bench.planner.tick();
  bench.say({{{1, 1}, 1, 1}});
  EXPECT_FALSE(bench.plan().empty());
  for (int i = 0; i < 2; ++i) bench.planner.delayed();
  bench.planner.tick();
  EXPECT_TRUE(bench.plan().empty());
}

TEST(Planner, AChunkLargerThanAnExpertCostsAnExpertAtMost) {
  Bench bench(rule_of(4), 1000);
  bench.planner.delayed();
  bench.planner.delayed();
  bench.planner.delayed();  // 1.5 transfers
  bench.planner.tick();
  bench.say({{{1, 1}, 1, 1}});
  EXPECT_FALSE(bench.plan().empty());
}

TEST(Planner, ABusyLinkLeavesRoomForOneWishAlone) {
  PrefetchRule rule = rule_of(4);
  rule.fill = 1;
  Bench bench(rule);
  bench.planner.tick();
  bench.say({{{1, 1}, .9f, 1}, {{1, 2}, .8f, 1}, {{2, 1}, .7f, 2}, {{3, 1}, .6f, 3}});
  EXPECT_EQ(bench.plan().size(), 3u);  // one expert per step: one of layer 1 too many
  bench.pace = {.expert = 1, .step = 1, .idle = 1e-30};
  EXPECT_EQ(bench.plan().size(), 1u);
  bench.pace = {};  // nothing is known yet, or no idle time
  EXPECT_EQ(bench.plan().size(), 1u);
}

}  // namespace
}  // namespace prophet
