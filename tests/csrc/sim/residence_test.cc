#include "sim/residence.h"

#include <gtest/gtest.h>

#include <map>
#include <numeric>

#include "sim_fixture.h"

namespace prophet::testing {
namespace {

constexpr Geometry kGeometry{2, 4, 1};

void come(Residence& to, ExpertKey key, Nanos now, EventKind kind = EventKind::read_demand) {
  to.happened({now - 5, now, kind, key, 100});
}
void go(Residence& to, ExpertKey key, Nanos now) {
  to.happened({now, now, EventKind::evicted, key, 0});
}
void turn(Residence& to, std::int32_t layer, int times = 1) {
  for (int i = 0; i < times; ++i) to.happened({0, 0, EventKind::layer_step, {layer, -1}, 0});
}

TEST(Residence, AStayIsTurnsOfTheExpertsOwnLayerAndTime) {
  Residence residence(kGeometry);
  turn(residence, 0);
  come(residence, {0, 1}, 100);
  turn(residence, 1, 9);
  turn(residence, 0, 3);
  go(residence, {0, 1}, 400);
  const Stays& stays = residence.stays();
  EXPECT_EQ(stays.turns.count(), 1u);
  EXPECT_EQ(stays.turns.most(), 3);
  EXPECT_EQ(stays.time.most(), 300);
  EXPECT_EQ(stays.by_power, (std::vector<std::uint64_t>{0, 1}));
}

TEST(Residence, BucketsArePowersOfTwo) {
  Residence residence(kGeometry);
  for (int stayed : {0, 1, 2, 3, 4, 7, 8}) {
    come(residence, {1, 2}, 10, EventKind::read_prefetch);
    turn(residence, 1, stayed);
    go(residence, {1, 2}, 20);
  }
  EXPECT_EQ(residence.stays().by_power, (std::vector<std::uint64_t>{2, 2, 2, 1}));
}

TEST(Residence, BackSoonCountsEachReturnUnderEveryLimitItMeets) {
  Residence residence(kGeometry);
  for (int away : {1, 3, 17}) {
    come(residence, {0, 0}, 1);
    go(residence, {0, 0}, 2);
    turn(residence, 0, away);
  }
  come(residence, {0, 0}, 3);
  EXPECT_EQ(residence.stays().back, (std::array<std::uint64_t, 3>{1, 2, 2}));
}

TEST(Residence, WhatIsForgottenNeitherStayedNorReturned) {
  Residence residence(kGeometry);
  come(residence, {0, 0}, 1);
  go(residence, {0, 0}, 2);
  come(residence, {0, 1}, 3);
  residence.forget();
  go(residence, {0, 1}, 9);
  come(residence, {0, 0}, 9);
  EXPECT_EQ(residence.stays().turns.count(), 1u);
  EXPECT_EQ(residence.stays().back, (std::array<std::uint64_t, 3>{}));
}

// Per-layer LRU of one expert a token, followed by hand.
TEST(Residence, OfAReplayEqualsABruteForceLru) {
  const Geometry geometry{2, 12, 1};
  constexpr std::int32_t kRooms = 5, kTokens = 600;
  const std::vector<std::int32_t> routes = make_routes(geometry, kTokens, true, 3);
  const ReplayResult result =
      decode(options_for(geometry, 2 * kRooms, "lru", PoolScope::per_layer), routes);
  std::vector<std::int64_t> stayed;
  std::array<std::uint64_t, 3> back{};
  for (std::int32_t layer = 0; layer < geometry.layers; ++layer) {
    std::map<std::int32_t, std::int64_t> came, used, gone;
    for (std::int64_t token = 0; token < kTokens; ++token) {
      const std::int32_t expert = routes[token * geometry.layers + layer];
      if (!came.contains(expert)) {
        if (std::ssize(came) == kRooms) {
          const auto oldest = std::min_element(
              used.begin(), used.end(), [](auto& a, auto& b) { return a.second < b.second; });
          stayed.push_back(token - came[oldest->first]);
          gone[oldest->first] = token;
          came.erase(oldest->first);
          used.erase(oldest);
        }
        if (const auto left = gone.find(expert); left != gone.end()) {
          for (std::size_t i = 0; i < back.size(); ++i) {
            if (token - left->second <= Stays::kSoon[i]) ++back[i];
          }
        }
        came[expert] = token;
      }
      used[expert] = token;
    }
  }
  ASSERT_FALSE(stayed.empty());
  EXPECT_EQ(result.stays.turns.count(), stayed.size());
  EXPECT_EQ(result.stays.turns.count(), result.counters.evictions);
  EXPECT_EQ(result.stays.turns.most(), *std::max_element(stayed.begin(), stayed.end()));
  const double sum = std::accumulate(stayed.begin(), stayed.end(), 0.0);
  EXPECT_DOUBLE_EQ(result.stays.turns.mean(), sum / double(stayed.size()));
  EXPECT_EQ(result.stays.back, back);
}

}  // namespace
}  // namespace prophet::testing
