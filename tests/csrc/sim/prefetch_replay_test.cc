// Prefetching in replays: what it may cost, what it must save, and that it sees no future.
#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <tuple>

#include "sim/sim_fixture.h"

namespace prophet::testing {
namespace {

constexpr Geometry kGeometry{4, 16, 4};
constexpr std::size_t kRow = 16;  // ids of a token

// Forecasts what the test says after the layer step number `step`, counted from 0.
class Scripted final : public Predictor {
 public:
  using Script = std::function<void(std::int64_t step, std::int32_t layer, const Glimpse& glimpse,
                                    std::vector<Forecast>& out)>;
  explicit Scripted(Script script) : script_(std::move(script)) {}
  std::string name() const override { return "scripted"; }
  void reset() override {}
  void observe(const Glimpse& glimpse) override {
    ++step_;
    experts_.assign(glimpse.experts, glimpse.experts + glimpse.tokens * glimpse.top_k);
    glimpse_ = glimpse;
    glimpse_.experts = experts_.data();
  }
  void forecast(std::int32_t layer, std::vector<Forecast>& out) override {
    script_(step_ - 1, layer, glimpse_, out);
  }

 private:
  Script script_;
  std::int64_t step_ = 0;
  std::vector<std::int32_t> experts_;
  Glimpse glimpse_;
};

ReplayOptions prefetching(std::int32_t slots, Scripted::Script script, std::int32_t last = 4) {
  ReplayOptions options = options_for(kGeometry, slots, "expected-next-use");
  options.engine.prefetch.last = last;
  options.engine.mover.chunk_bytes = 250;
  options.predictor = [script] { return std::make_unique<Scripted>(script); };
  return options;
}

// The experts of the next `reach` layer steps, from the routes themselves.
Scripted::Script perfect(const std::vector<std::int32_t>& routes, std::int32_t reach) {
  return [routes, reach](std::int64_t step, std::int32_t, const Glimpse&, auto& out) {
    for (std::int32_t ahead = 1; ahead <= reach; ++ahead) {
      const std::size_t at = std::size_t(step + ahead) * kGeometry.top_k;
      if (at >= routes.size()) return;
      for (std::int32_t k = 0; k < kGeometry.top_k; ++k) {
        out.push_back(
            {{std::int32_t((step + ahead) % kGeometry.layers), routes[at + k]}, 1, ahead});
      }
    }
  };
}

// Four experts of the next layer that it will not ask for.
Scripted::Script wrong(const std::vector<std::int32_t>& routes) {
  return [routes](std::int64_t step, std::int32_t, const Glimpse&, auto& out) {
    const std::size_t at = std::size_t(step + 1) * kGeometry.top_k;
    if (at >= routes.size()) return;
    const auto next = std::span(routes).subspan(at, kGeometry.top_k);
    for (std::int32_t e = 0, named = 0; e < kGeometry.experts_per_layer && named < 4; ++e) {
      if (std::ranges::find(next, e) != next.end()) continue;
      out.push_back({{std::int32_t((step + 1) % kGeometry.layers), e}, 1, 1});
      ++named;
    }
  };
}

// Causal: a function of what the router has said so far.
Scripted::Script guess(std::uint64_t seed) {
  auto random = std::make_shared<std::mt19937_64>(seed);
  return [random](std::int64_t, std::int32_t layer, const Glimpse& glimpse, auto& out) {
    for (std::int32_t i = 0; i < glimpse.tokens * glimpse.top_k; ++i) {
      const auto ahead = 1 + std::int32_t((*random)() % 4);
      const ExpertKey key{(layer + ahead) % kGeometry.layers,
                          (glimpse.experts[i] + 7 * ahead) % kGeometry.experts_per_layer};
      out.push_back({key, float((*random)() % 100) / 99, ahead});
    }
  };
}

void expect_bytes_add_up(const Counters& c, std::uint64_t in_flight_at_most = 0) {
  const std::uint64_t fates = c.bytes_demand + c.bytes_prefetch_used + c.bytes_prefetch_late +
                              c.bytes_prefetch_wasted + c.bytes_cancelled + c.bytes_prefetch_unused;
  EXPECT_GE(c.bytes_moved + in_flight_at_most, fates);
  EXPECT_LE(c.bytes_moved, fates + in_flight_at_most);
}

TEST(PrefetchReplay, PerfectForecastsOnAFastLinkLeaveTheFirstLayerToWait) {
  const auto routes = make_routes(kGeometry, 100, true, 1);
  ReplayOptions options = prefetching(24, perfect(routes, 1));
  options.times.layer = 5000;  // the four experts of a layer take 4000
  const ReplayResult result = decode(options, routes);
  // The four experts of the first layer, and now and then one that was here when it was forecast
  // and gave way to a wish.
  EXPECT_LE(result.counters.misses + result.counters.hits_in_flight, 4u + 2u);
  options.engine.prefetch = {};
  EXPECT_LT(result.counters.stall_ns, decode(options, routes).counters.stall_ns / 50);
}

TEST(PrefetchReplay, PerfectForecastsNeverCostTime) {
  for (const double bandwidth : {1e8, 3e8, 1e9, 3e9, 1e10}) {
    for (const std::int32_t slots : {12, 24, 48}) {
      const auto routes = make_routes(kGeometry, 300, true, 2);
      ReplayOptions options = prefetching(slots, perfect(routes, 2));
      options.times.layer = 2000;
      options.link.bytes_per_second = bandwidth;
      const ReplayResult with = decode(options, routes);
      options.engine.prefetch = {};
      const ReplayResult without = decode(options, routes);
      EXPECT_LE(double(with.counters.now_ns), 1.02 * double(without.counters.now_ns))
          << bandwidth << " " << slots;
    }
  }
}

// Every forecast is wrong. A layer waits for its own misses, and for one chunk at most besides.
TEST(PrefetchReplay, WrongForecastsCostOneChunkPerDemand) {
  const auto routes = make_routes(kGeometry, 600, true, 3);
  ReplayOptions options = prefetching(24, wrong(routes), 1);
  options.times.layer = 1100;  // some prefetches are cut off
  Replay replay(options);
  ReplayResult before = replay.result();
  for (std::int32_t token = 0; token < 600; ++token) {
    replay.decode({std::span(routes).subspan(token * kRow, kRow), {}, {}});
    const ReplayResult now = replay.result();
    Nanos most = 0;
    for (std::int32_t layer = 0; layer < kGeometry.layers; ++layer) {
      const auto missed = now.layers[layer].miss - before.layers[layer].miss +
                          now.layers[layer].in_flight - before.layers[layer].in_flight;
      if (missed > 0) most += Nanos(missed) * 1000 + 250;
    }
    ASSERT_LE(now.counters.stall_ns - before.counters.stall_ns, most) << "token " << token;
    before = now;
  }
  // Trust is soon lost, and what is hardly likely takes no slot.
  const auto speculated = [](const Counters& c) { return c.bytes_moved - c.bytes_demand; };
  ReplayOptions blind = options, without = options;
  blind.engine.prefetch.conscience = false;
  without.engine.prefetch = {};
  EXPECT_LT(speculated(before.counters), speculated(decode(blind, routes).counters) / 10);
  EXPECT_LE(double(before.counters.now_ns), 1.02 * double(decode(without, routes).counters.now_ns));
}

// A link that needs no time makes nobody wait, whatever is forecast.
TEST(PrefetchReplay, WithAnInstantLinkNothingStalls) {
  const auto routes = make_routes(kGeometry, 100, true, 4);
  for (const auto& script : {perfect(routes, 2), wrong(routes), guess(4)}) {
    ReplayOptions options = prefetching(20, script);
    options.link.bytes_per_second = 1e18;
    const ReplayResult result = decode(options, routes);
    // A chunk takes 1 ns, the least there is, and an expert has four.
    const Counters& c = result.counters;
    EXPECT_LE(c.stall_ns, Nanos(c.misses + c.hits_in_flight) * 4 + Nanos(c.layer_steps));
    EXPECT_EQ(c.hits_resident + c.hits_in_flight + c.misses, routes.size());
  }
}

auto fields(const Counters& c) {  // all but the predictor's own time, which is real
  return std::tuple(c.bytes_moved, c.bytes_demand, c.bytes_prefetch_used, c.bytes_prefetch_late,
                    c.bytes_prefetch_wasted, c.bytes_prefetch_unused, c.bytes_cancelled,
                    c.hits_resident, c.hits_in_flight, c.misses, c.evictions, c.evicted_before_use,
                    c.layer_steps, c.waves, c.reads, c.foresight_steps, c.foresight_held_steps,
                    c.prefetch_held_steps, c.stall_ns, c.compute_ns, c.busy_ns, c.now_ns);
}

bool same(const Event& a, const Event& b) {
  return std::tie(a.begin, a.end, a.kind, a.key, a.bytes) ==
         std::tie(b.begin, b.end, b.kind, b.key, b.bytes);
}

TEST(PrefetchReplay, TwiceTheSameToTheNanosecondAndByteAndBytesAddUp) {
  Counters sum{};
  for (std::uint64_t seed = 1; seed <= 24; ++seed) {
    std::mt19937 random{std::uint32_t(seed)};
    const auto routes = make_routes(kGeometry, 150, seed % 2, seed);
    const auto one = [&] {
      ReplayOptions options = prefetching(seed % 3 ? 20 : 40, guess(seed));
      options.engine.pool = seed % 4 ? PoolScope::global : PoolScope::per_layer;
      options.engine.policy = seed % 5 ? "expected-next-use" : "lru";
      options.engine.prefetch.conscience = seed % 2;
      options.link.bytes_per_second = seed % 3 == 1 ? 2e8 : 2e9;
      options.link.latency = Nanos(seed % 3) * 100;
      options.engine.timeline_events = 1 << 20;
      return options;
    };
    Replay a(one()), b(one());
    const std::int32_t batch = 1 + std::int32_t(random() % 3);
    a.decode({routes, {}, {}}, batch);
    b.decode({routes, {}, {}}, batch);
    ASSERT_EQ(fields(a.result().counters), fields(b.result().counters)) << "seed " << seed;
    ASSERT_TRUE(std::ranges::equal(a.engine().timeline(), b.engine().timeline(), same));
    // All but what is on the link at the end: two chunks of one expert.
    expect_bytes_add_up(a.result().counters, 2000);
    const Counters c = a.result().counters;
    EXPECT_EQ(c.hits_resident + c.hits_in_flight + c.misses, c.expert_bytes_routed / 1000);
    EXPECT_LE(c.busy_ns, c.now_ns);
    sum.bytes_prefetch_used += c.bytes_prefetch_used;
    sum.bytes_prefetch_wasted += c.bytes_prefetch_wasted;
    sum.bytes_prefetch_late += c.bytes_prefetch_late;
    sum.bytes_cancelled += c.bytes_cancelled;
  }
  for (std::uint64_t each : {sum.bytes_prefetch_used, sum.bytes_prefetch_wasted,
                             sum.bytes_prefetch_late, sum.bytes_cancelled}) {
    EXPECT_GT(each, 20'000u);
  }
}

// A second threshold below the first is for machines with a staging tier: here it changes nothing.
TEST(PrefetchReplay, WishesForAStagingTierChangeNothingWhereThereIsNone) {
  std::uint64_t moved_early = 0;
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    const auto routes = make_routes(kGeometry, 150, seed % 2, seed);
    const auto one = [&](float staging) {
      ReplayOptions options = prefetching(seed % 3 ? 20 : 40, guess(seed));
      options.engine.prefetch.least = 0.5f;
      options.engine.prefetch.staging = staging;
      options.engine.prefetch.per_layer = seed % 2 ? 2 : 100;
      options.engine.prefetch.fill = seed % 4 ? 1e9 : 1;
      options.engine.prefetch.conscience = seed % 2;
      options.link.bytes_per_second = seed % 3 == 1 ? 2e8 : 2e9;
      options.engine.timeline_events = 1 << 20;
      return options;
    };
    Replay without(one(1)), with(one(0.05f));
    without.decode({routes, {}, {}});
    with.decode({routes, {}, {}});
    ASSERT_EQ(fields(without.result().counters), fields(with.result().counters)) << "seed " << seed;
    ASSERT_TRUE(std::ranges::equal(without.engine().timeline(), with.engine().timeline(), same));
    moved_early += with.result().counters.bytes_prefetch_used;
  }
  EXPECT_GT(moved_early, 20'000u);
}

// What happened until layer `layer` of token `token` had been served and the next one began.
std::vector<Event> until(ReplayOptions options, const std::vector<std::int32_t>& routes,
                         std::int32_t token, std::int32_t layer) {
  options.engine.timeline_events = 1 << 20;
  Replay replay(options);
  replay.decode({routes, {}, {}});
  std::vector<Event> events = replay.engine().timeline();
  std::int32_t steps = 0;
  for (std::size_t i = 0; i < events.size(); ++i) {
    if (events[i].kind != EventKind::layer_step) continue;
    if (++steps == token * kGeometry.layers + layer + 2) {
      events.resize(i);
      return events;
    }
  }
  return events;
}

// Routes are known up to (token, layer); what follows is scrambled. Victims, transfers, stalls and
// hits up to there must be the same.
TEST(PrefetchReplay, SeesNoFuture) {
  const auto routes = make_routes(kGeometry, 80, true, 7);
  const auto scrambled = [&](std::int32_t token, std::int32_t layer, std::uint64_t seed) {
    auto out = routes;
    const auto other = make_routes(kGeometry, 80, false, seed);
    const std::size_t from = token * kRow + (layer + 1) * kGeometry.top_k;
    std::copy(other.begin() + from, other.end(), out.begin() + from);
    return out;
  };
  const auto agree = [&](const ReplayOptions& options, std::int32_t token, std::int32_t layer) {
    const auto a = until(options, routes, token, layer);
    const auto b = until(options, scrambled(token, layer, 100 + token), token, layer);
    return std::ranges::equal(a, b, same);
  };
  std::mt19937 random(7);
  int found_out = 0;
  for (int round = 0; round < 12; ++round) {
    const auto token = 20 + std::int32_t(random() % 50), layer = std::int32_t(random() % 4);
    ReplayOptions options = prefetching(20, {});
    options.link.bytes_per_second = round % 2 ? 1e9 : 2e10;  // saturated, or free for every wish
    options.predictor = [round] { return std::make_unique<Scripted>(guess(round)); };
    EXPECT_TRUE(agree(options, token, layer)) << token << ", " << layer;
    // One that knows the future is found out.
    options.predictor = {};
    options.emulate = EmulatorOptions{};
    found_out += !agree(options, token, layer);
  }
  EXPECT_GT(found_out, 0);
}

}  // namespace
}  // namespace prophet::testing
