// What every eviction policy must hold to, whatever it ranks by. A policy enrols with
//
//     INSTANTIATE_TEST_SUITE_P(Mine, PolicyConformance, ::testing::Values(Enrolled{"mine", make}));
//
// where `make` builds a new policy for a geometry. Properties are tried over random seeds on
// interleavings no cache would produce in one step: arrivals without use, uses of absent experts,
// prefill-like steps that touch a whole layer, holds that come and go.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <ostream>
#include <string>

#include "policy/traces.h"

namespace prophet::testing {

struct Enrolled {
  std::string name;
  std::function<std::unique_ptr<EvictionPolicy>(const Geometry&)> make;
  friend void PrintTo(const Enrolled& enrolled, std::ostream* out) { *out << enrolled.name; }
};

class PolicyConformance : public ::testing::TestWithParam<Enrolled> {
 protected:
  static constexpr Geometry kGeometry{3, 8, 2};
  static constexpr int kSeeds = 20;
  static constexpr int kSteps = 1500;

  std::unique_ptr<EvictionPolicy> make() const { return GetParam().make(kGeometry); }

  // One random event on the policy and the view.
  static void disturb(EvictionPolicy& policy, FakeView& view, Lcg& random) {
    const auto at = static_cast<std::int32_t>(random.below(kGeometry.total()));
    const ExpertKey key = kGeometry.key(at);
    switch (random.below(8)) {
      case 7: {
        const auto other = static_cast<std::int32_t>(random.below(kGeometry.experts_per_layer));
        const Forecast said[] = {{key, 0.25f, 2}, {{key.layer, other}, 0.5f, 2}, {{9, 9}, 1, 1}};
        return policy.forecast(said);
      }
      case 0:
        return policy.tick(key.layer);
      case 1:
        return policy.foreseen(key, 0.5f, 3);
      case 2:
        view.held[at] = !view.held[at];
        return;
      case 3:
        if (!view.present[at]) return;
        view.present[at] = view.held[at] = false;
        return policy.left(key);
      case 4:
        if (view.present[at]) policy.used(key);
        return;
      case 5:
        for (std::int32_t e = 0; e < kGeometry.experts_per_layer; ++e) {
          if (view.present[kGeometry.index({key.layer, e})]) policy.used({key.layer, e});
        }
        return;
      default:
        if (view.present[at]) return;
        view.present[at] = true;
        return policy.arrived(key);
    }
  }

  // Any layer's pool, or the pool of all.
  static std::optional<std::int32_t> any_pool(Lcg& random) {
    const auto draw = static_cast<std::int32_t>(random.below(kGeometry.layers + 1));
    return draw == kGeometry.layers ? std::nullopt : std::optional(draw);
  }
};

TEST_P(PolicyConformance, SaysItsName) { EXPECT_EQ(make()->name(), GetParam().name); }

TEST_P(PolicyConformance, NamesAnEvictableExpertExactlyWhenThereIsOne) {
  for (int seed = 0; seed < kSeeds; ++seed) {
    Lcg random(seed);
    const auto policy = make();
    FakeView view(kGeometry);
    for (int step = 0; step < kSteps; ++step) {
      disturb(*policy, view, random);
      view.pool = any_pool(random);
      const auto victim = policy->victim(view, {view.pool.value_or(0), 0});
      ASSERT_EQ(victim.has_value(), !view.candidates().empty())
          << "seed " << seed << " step " << step;
      if (victim) {
        ASSERT_TRUE(view.evictable(*victim)) << "seed " << seed << " step " << step;
      }
    }
  }
}

TEST_P(PolicyConformance, TwoThatHeardTheSameNameTheSame) {
  for (int seed = 0; seed < kSeeds; ++seed) {
    Lcg random(seed), same(seed);
    const auto policy = make(), twin = make();
    FakeView view(kGeometry), twin_view(kGeometry);
    for (int step = 0; step < kSteps; ++step) {
      disturb(*policy, view, random);
      disturb(*twin, twin_view, same);
      // Only one of them is asked each time: a question must leave no trace.
      if (step % 50)
        (void)policy->victim(view, {0, 0});
      else
        ASSERT_EQ(policy->victim(view, {0, 0}), twin->victim(twin_view, {0, 0})) << "seed " << seed;
    }
  }
}

TEST_P(PolicyConformance, ChoosesAmongTheRestWhenItsChoiceIsHeld) {
  Lcg random(7);
  const auto policy = make();
  FakeView view(kGeometry);
  for (int step = 0; step < kSteps; ++step) disturb(*policy, view, random);
  std::fill(view.held.begin(), view.held.end(), false);
  const std::size_t count = view.candidates().size();
  ASSERT_GT(count, 2u);
  std::vector<bool> named(kGeometry.total());
  for (std::size_t i = 0; i < count; ++i) {
    const auto victim = policy->victim(view, {0, 0});
    ASSERT_TRUE(victim);
    ASSERT_FALSE(named[kGeometry.index(*victim)]);
    named[kGeometry.index(*victim)] = view.held[kGeometry.index(*victim)] = true;
  }
  EXPECT_FALSE(policy->victim(view, {0, 0}));
}

TEST_P(PolicyConformance, ForgetsWhatLeft) {
  const auto policy = make();
  FakeView view(kGeometry);
  for (int cycle = 0; cycle < 100; ++cycle) {
    for (std::int32_t at = 0; at < kGeometry.total(); ++at) {
      policy->arrived(kGeometry.key(at));
      if (at % 2) policy->used(kGeometry.key(at));
    }
    for (std::int32_t at = 0; at < kGeometry.total(); ++at) policy->left(kGeometry.key(at));
  }
  // A view that would allow anything: only what arrived and did not leave may be named.
  std::fill(view.present.begin(), view.present.end(), true);
  EXPECT_FALSE(policy->victim(view, {0, 0}));
  policy->arrived({1, 5});
  EXPECT_EQ(policy->victim(view, {0, 0}), (ExpertKey{1, 5}));
}

TEST_P(PolicyConformance, ServesPrefillAndDecode) {
  constexpr Geometry whole_layer{3, 8, 8};
  std::vector<Step> trace = make_trace(whole_layer, 3, false, 1);
  for (const Step& step : make_trace(kGeometry, 50, true, 2)) trace.push_back(step);
  for (const Step& step : make_trace(whole_layer, 2, false, 3)) trace.push_back(step);
  EXPECT_GT(replay(*make(), kGeometry, trace, 12, false), 0);
  EXPECT_GT(replay(*make(), kGeometry, trace, 8, true), 0);
}

}  // namespace prophet::testing
