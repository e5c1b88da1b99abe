// Prefetching end to end: a scripted predictor, the planner, the mover and real bytes that land in
// any order.
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <stdexcept>

#include "device/sim/sim_backend.h"
#include "engine/engine_fixture.h"

namespace prophet {
namespace {

constexpr Geometry kGeometry{3, 8, 2};

// Forecasts what the test says after each layer step, counted from 0.
class Scripted final : public Predictor {
 public:
  using Script =
      std::function<void(std::int64_t step, std::int32_t layer, std::vector<Forecast>& out)>;
  explicit Scripted(Script script) : script_(std::move(script)) {}
  std::string name() const override { return "scripted"; }
  void reset() override {}
  void observe(const Glimpse&) override { ++steps_; }
  void forecast(std::int32_t layer, std::vector<Forecast>& out) override {
    script_(steps_ - 1, layer, out);
  }

 private:
  Script script_;
  std::int64_t steps_ = 0;
};

EngineOptions prefetching(std::int32_t slots, const std::string& policy = "expected-next-use") {
  EngineOptions options = options_with(slots);
  options.policy = policy;
  options.prefetch.last = kGeometry.layers;
  return options;
}

// One layer step served by a lease, told to the predictor first.
void serve(
    Engine& engine, std::int32_t layer, std::vector<std::int32_t> experts,
    const std::function<void()>& meanwhile = [] {}) {
  engine.step(layer);
  engine.observe({layer, 1, std::int32_t(experts.size()), experts.data(), nullptr, nullptr});
  Lease lease;
  engine.lease(layer, experts, lease);
  for (std::int32_t expert : experts) engine.wait(lease, expert);
  meanwhile();
  engine.release(lease);
}

void settle(World& world) {
  world.engine->want({});
  do {
    world.backend->land_all();
    world.engine->want({});
  } while (!world.backend->pending().empty());
}

std::unique_ptr<Predictor> says(std::vector<Forecast> after_first) {
  return std::make_unique<Scripted>([after_first](std::int64_t step, std::int32_t, auto& out) {
    if (step == 0) out = after_first;
  });
}

TEST(PrefetchEngine, WhatIsForecastComesWhileTheLayerIsServed) {
  World world(kGeometry, prefetching(8), {}, says({{{1, 5}, .9f, 1}, {{1, 6}, .8f, 1}}));
  serve(*world.engine, 0, {0, 1});
  while (world.engine->progress()) world.backend->land_all();
  EXPECT_EQ(world.engine->state({1, 5}), Residency::resident);
  EXPECT_EQ(world.engine->state({1, 6}), Residency::resident);
  serve(*world.engine, 1, {5, 6});
  const Counters c = world.engine->counters();
  EXPECT_EQ(c.misses, 2u);
  EXPECT_EQ(c.hits_resident, 2u);
  EXPECT_EQ(c.bytes_prefetch_used, 2 * kExpertBytes);
  expect_bytes_add_up(*world.engine);
}

TEST(PrefetchEngine, CancelledWhenTheRouterHasSpokenOtherwise) {
  World world(kGeometry, prefetching(8), {}, says({{{1, 5}, .9f, 1}}));
  serve(*world.engine, 0, {0, 1});
  ASSERT_EQ(world.engine->state({1, 5}), Residency::loading);
  serve(*world.engine, 1, {2, 3});
  settle(world);
  EXPECT_EQ(world.engine->state({1, 5}), Residency::absent);
  const Counters c = world.engine->counters();
  EXPECT_GT(c.bytes_cancelled, 0u);
  EXPECT_LT(c.bytes_cancelled, kExpertBytes);
  expect_bytes_add_up(*world.engine);
}

TEST(PrefetchEngine, LateOnesArePromoted) {
  World world(kGeometry, prefetching(8), {}, says({{{1, 5}, .9f, 1}}));
  serve(*world.engine, 0, {0, 1});
  ASSERT_EQ(world.engine->state({1, 5}), Residency::loading);
  world.engine->step(1);
  const std::int32_t experts[] = {5, 3};
  world.engine->observe({1, 1, 2, experts, nullptr, nullptr});
  Lease lease;
  world.engine->lease(1, experts, lease);
  std::size_t demand = 0;
  for (const auto& copy : world.backend->pending()) demand += copy.lane == Lane::demand;
  EXPECT_GE(demand, 2 * kExpertBytes / 256 - 4);  // all that had not been started
  EXPECT_TRUE(world.content_is_right({1, 5}, world.engine->wait(lease, 5)));
  world.engine->wait(lease, 3);
  world.engine->release(lease);
  const Counters c = world.engine->counters();
  EXPECT_EQ(c.hits_in_flight, 1u);
  EXPECT_EQ(c.bytes_prefetch_late, kExpertBytes);
  EXPECT_EQ(c.bytes_cancelled, 0u);
  expect_bytes_add_up(*world.engine);
}

TEST(PrefetchEngine, NothingIsWishedWherePrefetchIsOff) {
  EngineOptions options = prefetching(8);
  options.prefetch = {};
  World world(kGeometry, options, {}, says({{{1, 5}, .9f, 1}}));
  serve(*world.engine, 0, {0, 1});
  EXPECT_TRUE(world.backend->pending().empty());
  EXPECT_FALSE(world.engine->progress());
}

// Wishes for every expert there is, while leases hold all slots but those a demand needs.
TEST(PrefetchEngine, LeasedExpertsAreNotDisplacedAndDemandsGetTheirSlots) {
  for (const char* policy : {"lru", "lfu", "expected-next-use"}) {
    auto all = std::make_unique<Scripted>([](std::int64_t, std::int32_t layer, auto& out) {
      for (std::int32_t ahead = 1; ahead <= 3; ++ahead) {
        for (std::int32_t e = 0; e < 8; ++e) out.push_back({{(layer + ahead) % 3, e}, 1, ahead});
      }
    });
    EngineOptions options = prefetching(4, policy);
    options.prefetch.conscience = false;
    World world(kGeometry, options, {}, std::move(all));
    std::mt19937 random(9);
    for (int step = 0; step < 200; ++step) {
      const std::int32_t layer = step % 3;
      const std::int32_t experts[] = {std::int32_t(random() % 4), 4 + std::int32_t(random() % 4)};
      world.engine->step(layer);
      world.engine->observe({layer, 1, 2, experts, nullptr, nullptr});
      Lease held, more;
      world.engine->lease(layer, experts, held);
      for (std::int32_t expert : experts) world.engine->wait(held, expert);
      for (int i = 0; i < 3 && world.engine->progress(); ++i) world.backend->land_all();
      // Half of the slots are leased; wishes have taken the rest, and make way.
      const std::int32_t others[] = {(experts[0] + 1) % 4, 4 + (experts[1] - 3) % 4};
      world.engine->lease(layer, others, more);
      for (std::int32_t expert : others) {
        ASSERT_TRUE(world.content_is_right({layer, expert}, world.engine->wait(more, expert)));
      }
      for (const Lease::Entry& entry : held.entries) {
        ASSERT_EQ(world.engine->state(entry.key), Residency::leased);
        ASSERT_TRUE(world.content_is_right(entry.key, entry.slot));
      }
      world.engine->release(more);
      world.engine->release(held);
    }
    EXPECT_GT(world.engine->counters().bytes_prefetch_wasted, 0u) << policy;
  }
}

// What a predictor may say at its worst, drawn from a seed; some give up in the middle.
std::unique_ptr<Predictor> hostile(std::uint64_t seed, bool throws) {
  auto random = std::make_shared<std::mt19937_64>(seed);
  return std::make_unique<Scripted>([random, throws](std::int64_t step, std::int32_t, auto& out) {
    if (throws && step == 20) throw std::runtime_error("lost the thread");
    std::mt19937_64& r = *random;
    const float odd[] = {std::nanf(""), std::numeric_limits<float>::infinity(), -1, 0, 1, 2, 1e30f};
    for (std::uint64_t i = r() % 12; i > 0; --i) {
      Forecast one{{std::int32_t(r() % 3), std::int32_t(r() % 8)},
                   float(r() % 100) / 99,
                   1 + std::int32_t(r() % 4)};
      if (r() % 8 == 0) one.key = {std::int32_t(r()), std::int32_t(r())};
      if (r() % 8 == 0) one.key.expert = r() % 2 ? -1 : 8;
      if (r() % 8 == 0) one.horizon = std::int32_t(r());
      if (r() % 6 == 0) one.p = odd[r() % std::size(odd)];
      out.push_back(one);
    }
  });
}

// Results never depend on what is forecast, bytes have one fate each, and a predictor that fails
// stops nothing.
TEST(PrefetchEngine, WhateverIsForecastResultsAreTheSameBitsAndBytesAddUp) {
  Counters sum{};
  for (const std::string& policy : eviction_policy_names()) {
    for (std::uint64_t seed = 1; seed <= 16; ++seed) {
      const bool throws = seed % 4 == 0;
      EngineOptions options = prefetching(seed % 2 ? 7 : 12, policy);
      options.pool = seed % 3 ? PoolScope::global : PoolScope::per_layer;
      options.prefetch.conscience = seed % 5 != 0;
      options.background = seed % 8 == 1;
      EngineOptions without = options;
      without.prefetch = {};
      without.background = false;
      ManualOptions manual;
      manual.seed = seed;
      World plain(kGeometry, without), world(kGeometry, options, manual, hostile(seed, throws));
      std::mt19937 random{std::uint32_t(seed)};
      for (int step = 0; step < 45; ++step) {
        Batch batch(1 + std::int32_t(random() % 3), kGeometry, random), same = batch;
        ASSERT_NO_THROW(batch.run(*plain.engine, step % 3));
        ASSERT_NO_THROW(same.run(*world.engine, step % 3)) << policy << " seed " << seed;
        ASSERT_EQ(batch.out, same.out) << policy << " seed " << seed << " step " << step;
        if (random() % 3 == 0) world.backend->land_all();
        if (!options.background) world.engine->progress();
      }
      if (throws) {
        EXPECT_NE(world.engine->foresight_failure().find("lost the thread"), std::string::npos);
        EXPECT_LE(world.engine->counters().foresight_steps, 22u);
      } else {
        EXPECT_EQ(world.engine->foresight_failure(), "");
      }
      if (options.background) world.engine->close();
      if (!options.background) {
        settle(world);
        expect_bytes_add_up(*world.engine);
      }
      const Counters c = world.engine->counters();
      sum.bytes_prefetch_used += c.bytes_prefetch_used;
      sum.bytes_prefetch_late += c.bytes_prefetch_late;
      sum.bytes_prefetch_wasted += c.bytes_prefetch_wasted;
      sum.bytes_cancelled += c.bytes_cancelled;
      sum.bytes_prefetch_unused += c.bytes_prefetch_unused;
    }
  }
  EXPECT_GT(sum.bytes_prefetch_used, 10 * kExpertBytes);  // every fate was met
  EXPECT_GT(sum.bytes_prefetch_late, 10 * kExpertBytes);
  EXPECT_GT(sum.bytes_prefetch_wasted, 10 * kExpertBytes);
  EXPECT_GT(sum.bytes_cancelled, 10 * kExpertBytes);
  EXPECT_GT(sum.bytes_prefetch_unused, 10 * kExpertBytes);
}

// The same on a link with a clock: random forecasts, the bits of an engine without them.
TEST(PrefetchEngine, OnAVirtualClockToo) {
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    SimOptions link;
    link.content = float_content;
    link.alignment = 16;
    link.bytes_per_second = seed % 2 ? 1e8 : 1e10;
    const auto backend = std::make_shared<SimBackend>(link);
    backend->open({"virtual"});
    EngineOptions options = prefetching(9);
    options.mover.chunk_bytes = 256;
    Engine engine(std::make_shared<SyntheticStore>(kGeometry, kExpertBytes, 16), backend, options,
                  hostile(seed, false));
    FfnLayout layout;
    layout.shape = {kHidden, kInter, DType::f32, Activation::silu, true};
    layout.gate = {0, 0};
    layout.up = {0, kMatrix};
    layout.down = {0, 2 * kMatrix};
    engine.set_ffn(layout);
    World plain(kGeometry, options_with(9));
    std::mt19937 random{std::uint32_t(seed)};
    for (int step = 0; step < 60; ++step) {
      Batch batch(1, kGeometry, random), same = batch;
      batch.run(*plain.engine, step % 3);
      same.run(engine, step % 3);
      ASSERT_EQ(batch.out, same.out) << "seed " << seed << " step " << step;
      backend->advance(5000);
      engine.progress();
    }
    engine.want({});
    while (backend->next_landing() != SimBackend::kNever) {
      backend->advance(100000);
      engine.want({});
    }
    expect_bytes_add_up(engine);
  }
}

}  // namespace
}  // namespace prophet
