// The policies against slow implementations of their definitions, victim by victim.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <tuple>

#include "policy/traces.h"

namespace prophet::testing {
namespace {

constexpr Geometry kGeometry{4, 16, 3};
constexpr std::int32_t kTokens = 200;

// Every use so far, in order; nothing is ever summarised.
struct Diary {
  std::vector<std::int32_t> uses;
  std::vector<std::int64_t> arrival = std::vector<std::int64_t>(kGeometry.total());

  std::int64_t now() const { return std::ssize(uses); }
  std::int64_t count(std::int32_t at) const { return std::ranges::count(uses, at); }
  std::int64_t last_use(std::int32_t at) const {  // 1 for the first use of all; 0: never
    for (std::int64_t i = now(); i > 0; --i) {
      if (uses[i - 1] == at) return i;
    }
    return 0;
  }
};

// Replays random and skewed traces, global and per layer; `worst(diary, candidates)` is the
// definition's victim, asked before every eviction.
void expect_same_victims(
    const char* name,
    const std::function<std::int32_t(const Diary&, const std::vector<std::int32_t>&)>& worst) {
  for (bool skew : {false, true}) {
    for (bool per_layer : {false, true}) {
      for (std::uint64_t seed = 0; seed < 2; ++seed) {
        Diary diary;
        std::int64_t evictions = 0;
        Listener listener;
        listener.used = [&](std::int32_t at) { diary.uses.push_back(at); };
        listener.victim = [&](const FakeView& view, std::optional<ExpertKey> victim) {
          ++evictions;
          ASSERT_TRUE(victim);
          ASSERT_EQ(kGeometry.index(*victim), worst(diary, view.candidates()))
              << name << " skew " << skew << " per layer " << per_layer << " eviction "
              << evictions;
        };
        const auto policy = make_eviction_policy(name, kGeometry);
        const auto trace = make_trace(kGeometry, kTokens, skew, seed);
        const std::int64_t misses =
            replay(*policy, kGeometry, trace, per_layer ? 6 : 25, per_layer, listener);
        EXPECT_EQ(misses, evictions + (per_layer ? 24 : 25));
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

TEST(Lru, EvictsTheLongestUnused) {
  expect_same_victims("lru", [](const Diary& diary, const std::vector<std::int32_t>& candidates) {
    return *std::ranges::min_element(candidates, {},
                                     [&](std::int32_t at) { return diary.last_use(at); });
  });
}

TEST(Lfu, EvictsTheFewestUsesThenTheLongestUnused) {
  expect_same_victims("lfu", [](const Diary& diary, const std::vector<std::int32_t>& candidates) {
    return *std::ranges::min_element(candidates, {}, [&](std::int32_t at) {
      return std::pair(diary.count(at), diary.last_use(at));
    });
  });
}

TEST(Lfru, EvictsTheSmallestCountOverAge) {
  expect_same_victims("lfru", [](const Diary& diary, const std::vector<std::int32_t>& candidates) {
    std::int32_t worst = candidates.front();
    for (std::int32_t at : candidates) {
      const auto age = [&](std::int32_t i) { return diary.now() - diary.last_use(i) + 1; };
      if (diary.count(at) * age(worst) < diary.count(worst) * age(at)) worst = at;
    }
    return worst;
  });
}

// Expected next use from its definition: averages faded eagerly, the truncated mean as a sum.
class ExpectedNextUseReference {
 public:
  void tick(std::int32_t layer) {
    running_ = layer;
    for (std::int32_t e = 0; e < kGeometry.experts_per_layer; ++e) {
      const std::int32_t at = kGeometry.index({layer, e});
      quick_[at] *= 0.4L;
      slow_[at] *= 0.96L;
    }
  }
  void used(std::int32_t at) {
    quick_[at] += 1 - 0.4L;
    slow_[at] += 1 - 0.96L;
  }
  std::int32_t running() const { return running_; }
  long double distance(std::int32_t at) const {
    const long double rate = 0.2L * quick_[at] + 0.8L * slow_[at];
    long double gap = 0;
    for (int n = 0; n < 8; ++n) gap += std::pow(1 - rate, n);
    std::int32_t ahead = kGeometry.key(at).layer - running_;
    if (ahead <= 0) ahead += kGeometry.layers;
    return ahead + (gap - 1) * kGeometry.layers;
  }

 private:
  static std::vector<long double> start() {
    return std::vector<long double>(kGeometry.total(), 3.0L / 16);
  }
  std::int32_t running_ = 0;
  std::vector<long double> quick_ = start(), slow_ = start();
};

TEST(ExpectedNextUse, EvictsTheFarthestByItsDefinition) {
  for (bool skew : {false, true}) {
    for (bool per_layer : {false, true}) {
      ExpectedNextUseReference reference;
      Listener listener;
      listener.tick = [&](std::int32_t layer) { reference.tick(layer); };
      listener.used = [&](std::int32_t at) { reference.used(at); };
      listener.victim = [&](const FakeView& view, std::optional<ExpertKey> victim) {
        ASSERT_TRUE(victim);
        long double farthest = 0;
        for (std::int32_t at : view.candidates()) {
          farthest = std::max(farthest, reference.distance(at));
        }
        ASSERT_NEAR(double(reference.distance(kGeometry.index(*victim))), double(farthest), 1e-9);
      };
      const auto policy = make_eviction_policy("expected-next-use", kGeometry);
      // Long enough that averages are folded several times.
      replay(*policy, kGeometry, make_trace(kGeometry, 1500, skew, 5), per_layer ? 6 : 25,
             per_layer, listener);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(ExpectedNextUse, AnExpertOfTheLayerJustPassedIsAWholeTokenAway) {
  const auto policy = make_eviction_policy("expected-next-use", kGeometry);
  FakeView view(kGeometry);
  for (std::int32_t layer = 0; layer < kGeometry.layers; ++layer) {
    view.present[kGeometry.index({layer, 0})] = true;
    policy->arrived({layer, 0});
  }
  for (int token = 0; token < 1000; ++token) {
    for (std::int32_t layer = 0; layer < kGeometry.layers; ++layer) {
      policy->tick(layer);
      policy->used({layer, 0});
      // All are used in every token, so the one that just ran comes again last.
      if (token == 999) {
        EXPECT_EQ(policy->victim(view, {layer, 1}), (ExpertKey{layer, 0}));
      }
    }
  }
}

TEST(ExpectedNextUse, WhatWasBroughtAheadStaysUntilItsLayerRan) {
  const auto policy = make_eviction_policy("expected-next-use", kGeometry);
  FakeView view(kGeometry);
  const auto arrive = [&](ExpertKey key) {
    policy->arrived(key);
    view.present[kGeometry.index(key)] = true;
  };
  for (int token = 0; token < 20; ++token) {
    policy->tick(0);
    if (token == 0) arrive({0, 0});
    policy->used({0, 0});
    policy->tick(2);
  }
  policy->tick(1);
  arrive({2, 9});  // never used, brought for layer 2 which runs next
  EXPECT_EQ(policy->victim(view, {1, 1}), (ExpertKey{0, 0}));
  policy->tick(2);  // its turn comes
  policy->tick(3);
  EXPECT_EQ(policy->victim(view, {3, 1}), (ExpertKey{2, 9}));
}

// A predictor's gaps rule in the turn they were told in and the next one, then memory does again.
TEST(ExpectedNextUse, BelievesAPredictorForOneTurn) {
  const Geometry geometry{2, 3, 1};
  const auto policy = make_eviction_policy("expected-next-use", geometry);
  const auto by_memory = make_eviction_policy("expected-next-use", geometry);
  FakeView all(geometry);
  for (std::int32_t e = 0; e < 3; ++e) all.present[e] = true;
  for (EvictionPolicy* each : {policy.get(), by_memory.get()}) {
    for (std::int32_t e = 0; e < 3; ++e) each->arrived({0, e});
    for (std::int32_t turn = 0; turn < 4; ++turn) {
      each->tick(0);
      each->used({0, turn == 3 ? 1 : 0});  // expert 2 has never been used
      each->tick(1);
    }
  }
  EXPECT_EQ(by_memory->victim(all, {1, 0}), (ExpertKey{0, 2}));
  policy->expects(0, std::vector<float>{7, 2, 3});
  EXPECT_EQ(policy->victim(all, {1, 0}), (ExpertKey{0, 0}));
  policy->tick(0);
  EXPECT_EQ(policy->victim(all, {1, 0}), (ExpertKey{0, 0}));
  policy->tick(0);
  EXPECT_EQ(policy->victim(all, {1, 0}), (ExpertKey{0, 2}));
}

// A wish may take a slot only when it is needed sooner than the victim, by distances computed from
// the definition: forecasts of random probabilities, arrivals ahead of a turn, random caches.
TEST(ExpectedNextUse, AWishNeverTakesTheSlotOfAnExpertNeededSooner) {
  int yielded = 0, refused = 0;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Lcg random(seed);
    ExpectedNextUseReference reference;
    const auto policy = make_eviction_policy("expected-next-use", kGeometry);
    FakeView view(kGeometry);
    std::vector<std::optional<double>> chance(kGeometry.total());  // until its layer's turn is over
    const auto distance = [&](std::int32_t at) {
      const double usual = double(reference.distance(at));
      if (!chance[at]) return usual;
      const std::int32_t layer = kGeometry.key(at).layer;
      const double nearest = layer - reference.running() + (layer > reference.running() ? 0 : 4);
      const double gap = 1 + (usual - nearest) / kGeometry.layers;
      return nearest + (1 - *chance[at]) * gap * kGeometry.layers;
    };
    for (const Step& step : make_trace(kGeometry, 60, true, seed)) {
      policy->tick(step.layer);
      reference.tick(step.layer);
      for (std::int32_t e = 0; e < kGeometry.experts_per_layer; ++e) {
        chance[kGeometry.index({step.layer, e})].reset();
      }
      for (std::int32_t expert : step.experts) {
        const std::int32_t at = kGeometry.index({step.layer, expert});
        if (!view.present[at]) policy->arrived({step.layer, expert});
        view.present[at] = true;
        policy->used({step.layer, expert});
        reference.used(at);
      }
      for (int i = 0; i < 6; ++i) {
        const std::int32_t at = std::int32_t(random.below(std::uint32_t(kGeometry.total())));
        const ExpertKey key = kGeometry.key(at);
        if (view.present[at]) continue;
        const float p = float(random.below(101)) / 100;
        policy->foreseen(key, p, 0);
        chance[at] = double(p);
        const auto victim = policy->victim(view, key);
        ASSERT_TRUE(victim);
        for (std::int32_t other : view.candidates()) {
          ASSERT_LE(distance(other), distance(kGeometry.index(*victim)) + 1e-6);
        }
        const double gain = distance(kGeometry.index(*victim)) - distance(at);
        if (std::abs(gain) < 1e-6) continue;  // the reference cannot tell
        const bool yields = policy->yields(*victim, {key, p, 0});
        ASSERT_EQ(yields, gain > 0) << "seed " << seed;
        ++(yields ? yielded : refused);
        if (!yields) continue;
        view.present[kGeometry.index(*victim)] = false;
        policy->left(*victim);
        view.present[at] = true;
        policy->arrived(key);
      }
    }
  }
  EXPECT_GT(yielded, 200);
  EXPECT_GT(refused, 200);
}

// Whatever probability is claimed, a demand finds a victim: more than certain is certain.
TEST(ExpectedNextUse, NoForecastMakesAnExpertUnevictable) {
  for (float p : {2.0f, 1e30f, std::numeric_limits<float>::infinity(), std::nanf(""), -1.0f}) {
    const auto policy = make_eviction_policy("expected-next-use", kGeometry);
    FakeView view(kGeometry);
    for (std::int32_t e = 0; e < 3; ++e) {
      policy->arrived({1, e});
      policy->foreseen({1, e}, p, 0);
      view.present[kGeometry.index({1, e})] = true;
    }
    EXPECT_TRUE(policy->victim(view, {1, 9})) << p;
  }
}

TEST(ExpectedNextUse, SeveralWavesOfOneTurnCountOnce) {
  const auto once = make_eviction_policy("expected-next-use", kGeometry);
  const auto waves = make_eviction_policy("expected-next-use", kGeometry);
  FakeView view(kGeometry);
  for (std::int32_t e : {3, 4}) {
    view.present[e] = true;
    once->arrived({0, e});
    waves->arrived({0, e});
  }
  for (int token = 0; token < 10; ++token) {
    for (EvictionPolicy* policy : {once.get(), waves.get()}) {
      policy->tick(0);
      policy->used({0, 4});
      if (token % 2) policy->used({0, 3});
    }
    for (int wave = 0; wave < 5; ++wave) {
      if (token % 2) waves->used({0, 3});
    }
  }
  EXPECT_EQ(once->victim(view, {0, 0}), (ExpertKey{0, 3}));
  EXPECT_EQ(waves->victim(view, {0, 0}), (ExpertKey{0, 3}));
}

}  // namespace
}  // namespace prophet::testing
