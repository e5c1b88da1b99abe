// Misses at every size in one pass against replays through the engine, one size at a time.
#include "sim/stack_distance.h"

#include <gmock/gmock.h>

#include "core/error.h"
#include "sim/sim_fixture.h"

namespace prophet::testing {
namespace {

std::vector<std::int64_t> next_uses(const Geometry& g, const std::vector<std::int32_t>& routes) {
  std::vector<std::int64_t> next;
  NextUse(g, std::vector<std::int32_t>(std::size_t(g.layers), g.experts_per_layer), 0)
      .prepend(routes, 1, next);
  return next;
}

StackDistances distances(const Geometry& g, const std::vector<std::int32_t>& routes,
                         std::size_t chunk = 1000) {
  const auto next = next_uses(g, routes);
  StackDistances out(g);
  const std::size_t row = std::size_t(g.layers) * g.top_k;
  for (std::size_t at = 0; at < routes.size(); at += chunk * row) {
    const std::size_t count = std::min(chunk * row, routes.size() - at);
    out.decode({routes.data() + at, count}, {next.data() + at, count});
  }
  return out;
}

constexpr Geometry kShapes[] = {{6, 32, 4}, {1, 8, 3}, {3, 6, 1}, {2, 7, 7}, {4, 12, 5}};

TEST(StackDistances, EqualReplaysAtEverySizeOfOnePool) {
  for (const Geometry& g : kShapes) {
    for (const bool skew : {false, true}) {
      const auto routes = make_routes(g, 90, skew, 5);
      const StackDistances found = distances(g, routes);
      const auto lru = found.lru(), best = found.clairvoyant();
      ASSERT_EQ(std::ssize(lru), g.total() + 1);
      for (std::int32_t slots = g.top_k; slots <= g.total(); ++slots) {
        SCOPED_TRACE(std::to_string(g.layers) + " layers, " + std::to_string(slots) + " slots");
        EXPECT_EQ(std::int64_t(lru[slots]), misses(options_for(g, slots, "lru"), routes));
        EXPECT_EQ(std::int64_t(best[slots]), misses(options_for(g, slots, "belady"), routes));
      }
    }
  }
}

TEST(StackDistances, EqualReplaysAtEverySizeOfAPoolPerLayer) {
  for (const Geometry& g : kShapes) {
    const auto routes = make_routes(g, 90, true, 8);
    const StackDistances found = distances(g, routes);
    const auto lru = found.lru_per_layer(), best = found.clairvoyant_per_layer();
    for (std::int32_t slots = g.top_k; slots <= g.experts_per_layer; ++slots) {
      const auto pool = PoolScope::per_layer;
      const auto a = decode(options_for(g, slots * g.layers, "lru", pool), routes);
      const auto b = decode(options_for(g, slots * g.layers, "belady", pool), routes);
      for (std::int32_t layer = 0; layer < g.layers; ++layer) {
        EXPECT_EQ(lru[layer][slots], a.layers[layer].miss) << layer << " " << slots;
        EXPECT_EQ(best[layer][slots], b.layers[layer].miss) << layer << " " << slots;
      }
    }
  }
}

TEST(StackDistances, AreTheSameInWhateverChunks) {
  constexpr Geometry g{3, 10, 2};
  const auto routes = make_routes(g, 61, true, 2);
  for (const std::size_t chunk : {1u, 7u}) {
    EXPECT_EQ(distances(g, routes, chunk).lru(), distances(g, routes).lru());
    EXPECT_EQ(distances(g, routes, chunk).clairvoyant(), distances(g, routes).clairvoyant());
  }
}

TEST(StackDistances, BelowTopKNothingRuns) {
  constexpr Geometry g{2, 6, 3};
  const auto routes = make_routes(g, 10, false, 1);
  const StackDistances found = distances(g, routes);
  EXPECT_EQ(found.accesses(), 60u);
  for (const auto& curve : {found.lru(), found.clairvoyant()}) {
    EXPECT_THAT((std::vector(curve.begin(), curve.begin() + 3)), ::testing::Each(60u));
    EXPECT_LT(curve.back(), 60u);
  }
}

TEST(StackDistances, RefuseWhatCannotBe) {
  EXPECT_THROW(StackDistances({0, 4, 1}), InvalidArgument);
  EXPECT_THROW(StackDistances({1, 4, 5}), InvalidArgument);
  EXPECT_THROW(StackDistances({1, 128, 65}), InvalidArgument);
  StackDistances two({1, 4, 2});
  const std::vector<std::int64_t> next(2, NextUse::kNever);
  const std::vector<std::int32_t> good = {0, 1}, twice = {1, 1}, beyond = {0, 4}, below = {-1, 0};
  two.decode(good, next);
  for (const auto& bad : {twice, beyond, below}) {
    EXPECT_THROW(two.decode(bad, next), InvalidArgument);
  }
  EXPECT_THROW(two.decode(good, {}), InvalidArgument);
  EXPECT_THROW(two.decode(std::vector<std::int32_t>{0}, std::vector<std::int64_t>{0}),
               InvalidArgument);
}

}  // namespace
}  // namespace prophet::testing
