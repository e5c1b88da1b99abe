// Bounds that are really bounds: nothing that the engine can be told to do is faster than the
// clairvoyant's time, over random traces, machines, policies, rules and foresight.
#include <gmock/gmock.h>

#include <cmath>
#include <map>
#include <set>

#include "core/error.h"
#include "sim/sim_fixture.h"

namespace prophet::testing {
namespace {

constexpr Geometry kGeometry{4, 12, 2};

Nanos total(const ReplayResult& result) { return result.counters.now_ns; }

ReplayOptions bound_of(ReplayOptions options) {
  options.engine.policy = "belady";
  options.engine.pool = PoolScope::global;
  options.engine.keep = true;
  options.engine.prefetch = {};
  options.emulate.reset();
  options.clairvoyant = true;
  return options;
}

// A machine of any balance between link and processor.
ReplayOptions random_machine(Lcg& random, const Geometry& g, std::int32_t slots) {
  ReplayOptions options = options_for(g, slots);
  options.link.bytes_per_second = 1e9 * (1 + random.below(40)) / 10.0;
  options.link.latency = random.below(3) * 100;
  options.link.overhead = random.below(3) * 20;
  options.times.pass = random.below(2) * 1000;
  options.times.layer = random.below(2000);
  options.times.layer_token = random.below(50);
  options.times.expert = random.below(300);
  options.times.expert_token = random.below(50);
  options.engine.mover.chunk_bytes = 100 + random.below(1200);
  options.engine.mover.prefetch_chunks = 1 + int(random.below(4));
  return options;
}

TEST(Clairvoyant, IsNeverSlowerThanAnySystem) {
  constexpr PrefetchRule::Order kOrders[] = {PrefetchRule::Order::confidence,
                                             PrefetchRule::Order::deadline,
                                             PrefetchRule::Order::proximity};
  const std::vector<std::string> policies = eviction_policy_names();
  int prefetched = 0;
  for (std::uint64_t seed = 0; seed < 250; ++seed) {
    Lcg random(seed);
    const Geometry g{1 + std::int32_t(random.below(5)), 6 + std::int32_t(random.below(12)),
                     1 + std::int32_t(random.below(3))};
    const auto routes = make_routes(g, 60, seed % 2 == 0, seed);
    const std::int32_t least = g.top_k * g.layers;
    const auto slots = least + std::int32_t(random.below(std::uint32_t(g.total() - least + 1)));
    ReplayOptions options = random_machine(random, g, slots);
    const ReplayResult bound = decode(bound_of(options), routes);
    options.engine.policy = policies[random.below(std::uint32_t(policies.size()))];
    options.engine.pool = random.below(2) ? PoolScope::global : PoolScope::per_layer;
    options.engine.keep = random.below(4) > 0;
    if (random.below(4) > 0) {
      options.emulate =
          EmulatorOptions{random.below(3) ? 1.0 : 0.7, random.below(2) ? g.layers : 0};
      options.engine.prefetch.last = 1 + std::int32_t(random.below(std::uint32_t(g.layers)));
      options.engine.prefetch.order = kOrders[random.below(3)];
      options.engine.prefetch.conscience = random.below(2);
    }
    const ReplayResult system = decode(options, routes);
    EXPECT_LE(total(bound), total(system)) << "seed " << seed;
    EXPECT_LE(bound.tpot.mean(), system.tpot.mean() + 1e-9) << "seed " << seed;
    EXPECT_LE(bound.counters.misses * 1000, system.counters.bytes_moved) << "seed " << seed;
    prefetched += system.counters.bytes_prefetch_used > 0;
  }
  EXPECT_GT(prefetched, 50);
}

TEST(Clairvoyant, HoldsForDecodingAfterAPromptToo) {
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    Lcg random(seed);
    const auto routes = make_routes(kGeometry, 80, seed % 2 == 0, seed);
    const std::size_t row = std::size_t(kGeometry.layers) * kGeometry.top_k;
    const std::span<const std::int32_t> prompt(routes.data(), 30 * row),
        rest(routes.data() + 30 * row, 50 * row);
    ReplayOptions options = random_machine(random, kGeometry, 12 + std::int32_t(random.below(30)));
    const auto mean = [&](const ReplayOptions& asked, bool clairvoyant) {
      Replay replay(asked);
      std::vector<std::int64_t> later, sooner;
      if (clairvoyant) {
        NextUse next(kGeometry, replay.rooms(), 0);
        next.prepend(rest, 1, later);
        next.prepend(prompt, 30, sooner);
      }
      replay.prefill({prompt, {}, sooner});
      replay.decode({rest, {}, later});
      return replay.result().tpot.mean();
    };
    const double bound = mean(bound_of(options), true);
    options.engine.policy = "expected-next-use";
    options.engine.prefetch.last = 4;
    options.emulate = EmulatorOptions{1.0, 4};
    EXPECT_LE(bound, mean(options, false) + 1e-9) << "seed " << seed;
  }
}

TEST(Clairvoyant, IsTheComputingWhereTheLinkIsFastAndTheBytesWhereItIsSlow) {
  const auto routes = make_routes(kGeometry, 200, true, 5);
  ReplayOptions options = options_for(kGeometry, 12);
  options.times = {100, 200, 0, 50, 0};
  const Nanos computing = 200 * (100 + 4 * (200 + 2 * 50));
  options.link.bytes_per_second = 1e15;
  EXPECT_LE(total(decode(bound_of(options), routes)), computing + 300);
  EXPECT_GE(total(decode(bound_of(options), routes)), computing);
  options.link.bytes_per_second = 1e6;  // a millisecond an expert
  const ReplayResult slow = decode(bound_of(options), routes);
  const auto bytes = std::int64_t(slow.counters.misses) * 1000;
  EXPECT_NEAR(double(total(slow)), double(bytes) * 1000, double(bytes) * 10);
  EXPECT_EQ(slow.counters.misses,
            std::uint64_t(misses(options_for(kGeometry, 12, "belady"), routes)));
}

TEST(Clairvoyant, GivesTheSameTwice) {
  const auto routes = make_routes(kGeometry, 100, true, 1);
  const ReplayOptions options = bound_of(options_for(kGeometry, 14));
  EXPECT_EQ(total(decode(options, routes)), total(decode(options, routes)));
}

TEST(Bounds, WithInfiniteBandwidthNothingStalls) {
  const auto routes = make_routes(kGeometry, 100, true, 2);
  for (const std::string& policy : eviction_policy_names()) {
    ReplayOptions options = options_for(kGeometry, 12, policy);
    options.link.bytes_per_second = 1e18;
    const ReplayResult result = decode(options, routes);
    // A chunk takes a nanosecond at least; an expert has four.
    EXPECT_LE(result.counters.stall_ns, Nanos(4 * result.counters.misses)) << policy;
  }
}

// --- the emulated predictor

std::vector<Forecast> said(Emulator& emulator, std::int32_t layer) {
  std::vector<Forecast> out;
  emulator.forecast(layer, out);
  return out;
}

TEST(Emulator, WithFullRecallNamesTheFutureAndNothingElse) {
  const auto routes = make_routes(kGeometry, 3, false, 4);
  const std::span<const std::int32_t> all(routes);
  const std::size_t row = std::size_t(kGeometry.layers) * kGeometry.top_k;
  Emulator token(kGeometry, {1, 0}), next(kGeometry, {1, kGeometry.layers});
  for (std::size_t pass = 0; pass < 2; ++pass) {
    for (Emulator* each : {&token, &next}) {
      each->begin(all.subspan(pass * row, row), all.subspan((pass + 1) * row, row));
    }
    for (std::int32_t layer = 0; layer < kGeometry.layers; ++layer) {
      EXPECT_EQ(said(token, layer).size(), std::size_t(kGeometry.layers - 1 - layer) * 2);
      const std::vector<Forecast> far = said(next, layer);
      EXPECT_EQ(far.size(), std::size_t(kGeometry.layers) * 2);
      for (const Forecast& one : far) {
        const std::int32_t at = layer + one.horizon;
        EXPECT_EQ(one.key.layer, at % kGeometry.layers);
        EXPECT_EQ(one.p, 1);
        const auto* chosen = routes.data() + pass * row + std::size_t(at) * kGeometry.top_k;
        EXPECT_TRUE(chosen[0] == one.key.expert || chosen[1] == one.key.expert);
      }
    }
  }
}

TEST(Emulator, HasTheRecallThatWasAskedForAndSaysTheSameOfALayerAlways) {
  constexpr Geometry wide{6, 40, 4};
  const auto routes = make_routes(wide, 400, false, 8);
  const std::size_t row = 24;
  Emulator emulator(wide, {0.8, 0});
  std::int64_t right = 0, named = 0;
  for (std::size_t pass = 0; pass < 400; ++pass) {
    emulator.begin(std::span(routes).subspan(pass * row, row), {});
    std::map<std::int32_t, std::set<std::int32_t>> of_layer;
    for (std::int32_t layer = 0; layer < wide.layers; ++layer) {
      std::map<std::int32_t, std::set<std::int32_t>> now;
      for (const Forecast& one : said(emulator, layer)) {
        EXPECT_TRUE(now[one.key.layer].insert(one.key.expert).second);
      }
      for (const auto& [to, experts] : now) {
        EXPECT_EQ(experts.size(), 4u);
        if (layer > 0) EXPECT_EQ(of_layer[to], experts);
        of_layer[to] = experts;
      }
    }
    for (const auto& [layer, experts] : of_layer) {
      const auto* chosen = routes.data() + pass * row + std::size_t(layer) * 4;
      for (std::int32_t i = 0; i < 4; ++i) right += experts.contains(chosen[i]);
      named += 4;
    }
  }
  EXPECT_NEAR(double(right) / double(named), 0.8, 0.02);
}

TEST(Emulator, RefusesWhatCannotBe) {
  for (const EmulatorOptions bad : {EmulatorOptions{-0.1, 0}, EmulatorOptions{1.1, 0},
                                    EmulatorOptions{std::nan(""), 0}, EmulatorOptions{1, -1}}) {
    EXPECT_THROW(Emulator(kGeometry, bad), InvalidArgument);
  }
  ReplayOptions both = options_for(kGeometry, 12);
  both.emulate = EmulatorOptions{};
  both.predictor = [] { return std::make_unique<Emulator>(kGeometry, EmulatorOptions{}); };
  EXPECT_THROW(Replay{both}, InvalidArgument);
}

// Perfect forecasts, brought in order over a link with room: far fewer wait.
TEST(Emulator, PrefetchingByItHidesTransfers) {
  const auto routes = make_routes(kGeometry, 150, false, 6);
  ReplayOptions options = options_for(kGeometry, 16, "expected-next-use");
  options.times.layer = 4000;
  const ReplayResult plain = decode(options, routes);
  options.emulate = EmulatorOptions{1, kGeometry.layers};
  options.engine.prefetch.last = kGeometry.layers;
  options.engine.prefetch.order = PrefetchRule::Order::deadline;
  const ReplayResult ahead = decode(options, routes);
  EXPECT_LT(ahead.counters.misses * 10, plain.counters.misses);
  EXPECT_LT(total(ahead), total(plain));
}

}  // namespace
}  // namespace prophet::testing
