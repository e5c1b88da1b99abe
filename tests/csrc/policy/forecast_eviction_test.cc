// The policies that weigh experts by forecasts, and those that are LRU in other words.
#include <gtest/gtest.h>

#include "policy/traces.h"

namespace prophet::testing {
namespace {

constexpr Geometry kGeometry{3, 8, 2};

// Present: experts 0 to 3 of every layer, used once in ascending order.
struct Stage {
  explicit Stage(const std::string& name) : policy(make_eviction_policy(name, kGeometry)) {
    for (std::int32_t layer = 0; layer < kGeometry.layers; ++layer) {
      policy->tick(layer);
      for (std::int32_t e = 0; e < 4; ++e) {
        policy->arrived({layer, e});
        policy->used({layer, e});
        view.present[kGeometry.index({layer, e})] = true;
      }
    }
  }
  ExpertKey victim() const { return policy->victim(view, {0, 7}).value(); }

  std::unique_ptr<EvictionPolicy> policy;
  FakeView view{kGeometry};
};

TEST(LeastStale, NamesTheVictimsOfLru) {
  for (std::uint64_t seed = 0; seed < 8; ++seed) {
    const auto trace = make_trace({5, 12, 3}, 200, seed % 2 == 0, seed);
    for (const std::int32_t slots : {8, 15, 30, 50}) {
      const auto stale = make_eviction_policy("least-stale", {5, 12, 3});
      const auto lru = make_eviction_policy("lru", {5, 12, 3});
      EXPECT_EQ(replay(*stale, {5, 12, 3}, trace, slots, false),
                replay(*lru, {5, 12, 3}, trace, slots, false));
    }
  }
}

TEST(LruForeseen, TakesAForecastForATouch) {
  Stage plain("lru"), stage("lru-foreseen");
  const Forecast said[] = {{{0, 0}, 0.5f, 1}, {{0, 1}, 0.5f, 1}, {{0, 7}, 0.5f, 1}};
  for (Stage* each : {&plain, &stage}) {
    EXPECT_EQ(each->victim(), (ExpertKey{0, 0}));
    each->policy->forecast(said);
  }
  EXPECT_EQ(plain.victim(), (ExpertKey{0, 0}));
  EXPECT_EQ(stage.victim(), (ExpertKey{0, 2}));
}

TEST(ActivationMatrix, KeepsWhatHasTheLargestShareAndEarlyLayers) {
  Stage stage("activation-matrix");
  EXPECT_EQ(stage.victim(), (ExpertKey{2, 0}));  // the last layer, of equal shares
  // Of layer 2 all but expert 3 have a share; of layer 1 a small one, divided by 1 - 1/3.
  const Forecast said[] = {
      {{2, 0}, 0.5f, 2}, {{2, 1}, 0.5f, 2}, {{2, 2}, 0.5f, 2}, {{1, 0}, 0.2f, 1}};
  stage.policy->forecast(said);
  EXPECT_EQ(stage.victim(), (ExpertKey{2, 3}));
  stage.view.held[kGeometry.index({2, 3})] = true;
  EXPECT_EQ(stage.victim(), (ExpertKey{1, 1}));
}

TEST(ActivationMatrix, ANewerWordOnALayerReplacesTheOlder) {
  Stage stage("activation-matrix");
  const Forecast older[] = {{{2, 0}, 0.9f, 1}}, newer[] = {{{2, 1}, 0.1f, 1}};
  stage.policy->forecast(older);
  EXPECT_EQ(stage.victim(), (ExpertKey{2, 1}));
  stage.policy->forecast(newer);
  EXPECT_EQ(stage.victim(), (ExpertKey{2, 0}));
}

TEST(ExpertMap, WeighsProbabilityByUses) {
  Stage stage("expert-map");
  const Forecast said[] = {{{0, 0}, 0.3f, 1}, {{0, 1}, 0.2f, 1}, {{0, 2}, 0.4f, 1},
                           {{0, 3}, 0.4f, 1}, {{1, 0}, 0.4f, 1}, {{1, 1}, 0.4f, 1},
                           {{1, 2}, 0.4f, 1}, {{1, 3}, 0.4f, 1}, {{2, 0}, 0.4f, 1},
                           {{2, 1}, 0.4f, 1}, {{2, 2}, 0.4f, 1}, {{2, 3}, 0.4f, 1}};
  stage.policy->forecast(said);
  EXPECT_EQ(stage.victim(), (ExpertKey{0, 1}));
  stage.policy->used({0, 1});  // 0.2 * 2 is above 0.3 * 1
  EXPECT_EQ(stage.victim(), (ExpertKey{0, 0}));
}

}  // namespace
}  // namespace prophet::testing
