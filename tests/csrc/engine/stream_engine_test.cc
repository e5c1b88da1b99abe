// Which layer steps stream, and that it changes no result.
#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "engine/engine_fixture.h"

namespace prophet {
namespace {

constexpr Geometry kGeometry{3, 12, 2};

EngineOptions options(std::int32_t slots, PoolScope pool = PoolScope::global) {
  EngineOptions out;
  out.slots = slots;
  out.pool = pool;
  out.background = false;
  return out;
}

std::vector<std::int32_t> counts(std::int32_t distinct) {
  std::vector<std::int32_t> out(kGeometry.experts_per_layer, 0);
  for (std::int32_t e = 0; e < distinct; ++e) out[e] = 1;
  return out;
}

TEST(EngineStream, AStepStreamsWhenItAsksForMoreThanItsLayersPart) {
  for (const PoolScope pool : {PoolScope::global, PoolScope::per_layer}) {
    World world(kGeometry, options(15, pool));  // five a layer
    const auto streams = [&](std::int32_t tokens, std::int32_t distinct) {
      const auto before = world.engine->counters().streamed_steps;
      world.engine->step(1, tokens, counts(distinct));
      return world.engine->counters().streamed_steps != before;
    };
    EXPECT_FALSE(streams(8, 5));
    EXPECT_TRUE(streams(8, 6));
    EXPECT_FALSE(streams(1, 6)) << "one token's experts are what the slots are for";
    EXPECT_FALSE(streams(8, 0));
    world.engine->set_streaming(false);
    EXPECT_FALSE(streams(8, 12));
    EXPECT_FALSE(world.engine->streaming());
    world.engine->set_streaming(true);
    EXPECT_TRUE(streams(8, 12));
  }
}

TEST(EngineStream, CallersWhoLeaseAreToldHowManyAtATime) {
  World world(kGeometry, options(15));
  EXPECT_EQ(world.engine->step(0, 8, counts(5)), 15);
  EXPECT_EQ(world.engine->step(0, 8, counts(12)), 2);  // an eighth is one: a token needs two
  EXPECT_EQ(world.engine->step(0, 1, {}), 15);
}

TEST(EngineStream, OnDemandKeepsNothingToProtect) {
  EngineOptions on_demand = options(15);
  on_demand.keep = false;
  World world(kGeometry, on_demand);
  world.engine->step(0, 8, counts(12));
  EXPECT_EQ(world.engine->counters().streamed_steps, 0u);
}

TEST(EngineStream, RefusesCountsThatAreNotOneForEachExpert) {
  World world(kGeometry, options(15));
  EXPECT_THROW(world.engine->step(0, 8, std::vector<std::int32_t>(11, 1)), InvalidArgument);
  EXPECT_THROW(world.engine->step(3, 8, counts(12)), InvalidArgument);
}

TEST(EngineStream, ResultsAreThoseOfTheDefinition) {
  for (const char* policy : {"lru", "expected-next-use"}) {
    EngineOptions with = options(15);
    with.policy = policy;
    World world(kGeometry, with);
    std::mt19937 random(3);
    for (int step = 0; step < 30; ++step) {
      Batch batch(step % 3 == 0 ? 20 : 1, kGeometry, random);
      const std::int32_t layer = step % kGeometry.layers;
      batch.run(*world.engine, layer);
      const std::vector<double> want = batch.expected(world, layer);
      for (std::size_t i = 0; i < want.size(); ++i) {
        ASSERT_NEAR(batch.out[i], want[i], 1e-4 * (1 + std::abs(want[i]))) << policy << " " << step;
      }
    }
    EXPECT_GT(world.engine->counters().streamed_steps, 5u);
  }
}

}  // namespace
}  // namespace prophet
