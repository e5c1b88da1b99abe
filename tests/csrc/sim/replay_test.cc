#include "sim/replay.h"

#include <gmock/gmock.h>

#include "core/error.h"
#include "device/manual/manual_backend.h"
#include "sim/sim_fixture.h"
#include "store/synthetic_store.h"

namespace prophet::testing {
namespace {

constexpr Geometry kGeometry{4, 16, 4};

TEST(Replay, ADecodedTokenTakesWhatTheLinkAndTheProcessorNeed) {
  // One layer at a time, by the sentences of the header: misses move one after the other from the
  // moment the router has spoken, residents are computed first, then each as it lands.
  for (const double expert_over_link : {0.05, 0.1, 0.5, 2.0, 9.0}) {
    ReplayOptions options = options_for(kGeometry, 24, "lru", PoolScope::per_layer);
    options.times.pass = 70;
    options.times.expert = Nanos(expert_over_link * 1000);
    const auto routes = make_routes(kGeometry, 60, true, 5);
    Replay replay(options);
    Nanos clock = 0;
    for (std::int32_t token = 0; token < 60; ++token) {
      const auto before = replay.result().layers;
      const std::size_t row = std::size_t(kGeometry.layers) * kGeometry.top_k;
      replay.decode({{routes.data() + token * row, row}, {}, {}});
      const auto after = replay.result().layers;
      clock += options.times.pass;
      for (std::int32_t layer = 0; layer < kGeometry.layers; ++layer) {
        const auto missed = after[layer].miss - before[layer].miss;
        clock += options.times.layer;
        const Nanos spoken = clock;
        clock += Nanos(kGeometry.top_k - missed) * options.times.expert;
        for (std::uint64_t i = 1; i <= missed; ++i) {
          clock = std::max(clock, spoken + Nanos(i) * 1000) + options.times.expert;
        }
      }
      ASSERT_EQ(replay.result().counters.now_ns, clock) << "token " << token;
    }
    EXPECT_NEAR(replay.result().tpot.mean() * 60, double(clock), 1e-3);
  }
}

TEST(Replay, CountsAddUp) {
  const auto routes = make_routes(kGeometry, 200, true, 2);
  const ReplayResult result = decode(options_for(kGeometry, 20), routes);
  const Counters& c = result.counters;
  EXPECT_EQ(result.tokens, 200u);
  EXPECT_EQ(result.passes, 200u);
  EXPECT_EQ(c.layer_steps, 200u * kGeometry.layers);
  EXPECT_EQ(c.waves, c.layer_steps);
  EXPECT_EQ(c.hits_resident + c.hits_in_flight + c.misses, routes.size());
  EXPECT_EQ(c.bytes_moved, c.misses * 1000);
  EXPECT_EQ(c.bytes_demand, c.bytes_moved);
  EXPECT_EQ(c.expert_bytes_routed, routes.size() * 1000);
  EXPECT_EQ(c.busy_ns, Nanos(c.misses) * 1000);
  EXPECT_EQ(c.evictions, c.misses - 20);
  LayerCounts sum;
  for (const LayerCounts& layer : result.layers) {
    sum.resident += layer.resident;
    sum.in_flight += layer.in_flight;
    sum.miss += layer.miss;
  }
  EXPECT_EQ(sum.resident, c.hits_resident);
  EXPECT_EQ(sum.in_flight, c.hits_in_flight);
  EXPECT_EQ(sum.miss, c.misses);
  // Attention, experts and waiting are all that takes time.
  const Nanos computing = Nanos(c.layer_steps) * 500 + Nanos(routes.size()) * 100;
  EXPECT_EQ(c.compute_ns, Nanos(routes.size()) * 100);
  EXPECT_EQ(c.now_ns, computing + c.stall_ns);
  EXPECT_NEAR(result.stall.mean() * 200, double(c.stall_ns), 1);
}

TEST(Replay, TheSameInAnyChunksAndEveryTime) {
  const auto routes = make_routes(kGeometry, 90, true, 8);
  const std::size_t row = std::size_t(kGeometry.layers) * kGeometry.top_k;
  const ReplayResult whole = decode(options_for(kGeometry, 24, "expected-next-use"), routes);
  for (const std::size_t chunk : {1u, 7u, 90u}) {
    Replay replay(options_for(kGeometry, 24, "expected-next-use"));
    for (std::size_t first = 0; first < 90; first += chunk) {
      replay.decode({{routes.data() + first * row, std::min(chunk, 90 - first) * row}, {}, {}});
    }
    const ReplayResult parts = replay.result();
    EXPECT_EQ(parts.counters.misses, whole.counters.misses);
    EXPECT_EQ(parts.counters.now_ns, whole.counters.now_ns);
    EXPECT_EQ(parts.counters.stall_ns, whole.counters.stall_ns);
    EXPECT_EQ(parts.tpot.quantile(0.99), whole.tpot.quantile(0.99));
  }
}

TEST(Replay, ARestartIsANewProcess) {
  const auto first = make_routes(kGeometry, 50, true, 1),
             second = make_routes(kGeometry, 40, true, 2);
  const ReplayOptions options = options_for(kGeometry, 24, "expected-next-use");
  Replay replay(options);
  replay.decode({first, {}, {}});
  replay.restart();
  replay.decode({second, {}, {}});
  const ReplayResult a = decode(options, first), b = decode(options, second),
                     both = replay.result();
  EXPECT_EQ(both.counters.misses, a.counters.misses + b.counters.misses);
  EXPECT_EQ(both.counters.now_ns, a.counters.now_ns + b.counters.now_ns);
  EXPECT_EQ(both.counters.busy_ns, a.counters.busy_ns + b.counters.busy_ns);
  EXPECT_EQ(both.layers[2].miss, a.layers[2].miss + b.layers[2].miss);
  EXPECT_EQ(both.tokens, 90u);
}

TEST(Replay, AFastLinkNeverStallsAndASlotForAllMissesOnce) {
  const auto routes = make_routes(kGeometry, 200, false, 4);
  ReplayOptions options = options_for(kGeometry, kGeometry.total());
  EXPECT_EQ(decode(options, routes).counters.misses, std::uint64_t(kGeometry.total()));
  options.engine.slots = 16;
  options.link.bytes_per_second = 1e15;  // a chunk takes 1 ns, the least there is
  const ReplayResult result = decode(options, routes);
  EXPECT_LE(result.counters.stall_ns, Nanos(result.counters.misses) * 4);
}

TEST(Replay, OnDemandKeepsNothing) {
  ReplayOptions options = options_for(kGeometry, 24);
  options.engine.keep = false;
  const auto routes = make_routes(kGeometry, 30, true, 6);
  EXPECT_EQ(decode(options, routes).counters.misses, routes.size());
}

TEST(Replay, AsksAsEngineForwardDoes) {
  // A prefill of many tokens in few slots: waves, hits and misses of the two must be the same.
  constexpr std::int32_t kTokens = 40, kHidden = 4, kInter = 4, kSlots = 9;
  constexpr std::uint64_t kBytes = 3 * kHidden * kInter * sizeof(float);
  const auto routes = make_routes(kGeometry, kTokens, true, 3);
  ReplayOptions options = options_for(kGeometry, kSlots, "lru");
  options.expert_bytes = kBytes;
  Replay replay(options);
  auto backend = std::make_shared<ManualBackend>();
  backend->open({"virtual"});
  options.engine.background = false;
  Engine engine(std::make_shared<SyntheticStore>(kGeometry, kBytes), backend, options.engine);
  FfnLayout layout;
  layout.shape = {kHidden, kInter, DType::f32, Activation::silu, true};
  layout.gate = {0, 0};
  layout.up = {0, kBytes / 3};
  layout.down = {0, kBytes / 3 * 2};
  engine.set_ffn(layout);
  for (int pass = 0; pass < 3; ++pass) {
    replay.prefill({routes, {}, {}});
    for (std::int32_t layer = 0; layer < kGeometry.layers; ++layer) {
      std::vector<std::int64_t> ids;
      for (std::int32_t t = 0; t < kTokens; ++t) {
        for (std::int32_t k = 0; k < kGeometry.top_k; ++k) {
          ids.push_back(routes[(t * kGeometry.layers + layer) * kGeometry.top_k + k]);
        }
      }
      std::vector<float> x(kTokens * kHidden, 0.0f), out(x), weights(ids.size(), 0.25f);
      engine.forward(layer, {kTokens, kGeometry.top_k, DType::f32, DType::f32, x.data(), ids.data(),
                             weights.data(), out.data()});
    }
  }
  const Counters real = engine.counters();
  const ReplayResult simulated = replay.result();
  EXPECT_EQ(simulated.counters.waves, real.waves);
  EXPECT_EQ(simulated.counters.misses, real.misses);
  EXPECT_EQ(simulated.counters.hits_resident, real.hits_resident);
  EXPECT_EQ(simulated.counters.evictions, real.evictions);
  EXPECT_EQ(simulated.counters.bytes_moved, real.bytes_moved);
  EXPECT_EQ(simulated.prefill_tokens, 3u * kTokens);
  EXPECT_EQ(simulated.prefill_ns, simulated.counters.now_ns);
  EXPECT_EQ(simulated.prefill_bytes, simulated.counters.bytes_moved);
  EXPECT_EQ(simulated.tpot.count(), 0u);
}

TEST(Replay, ABatchSharesItsExperts) {
  const auto routes = make_routes(kGeometry, 64, true, 3);
  ReplayOptions options = options_for(kGeometry, kGeometry.total());
  options.times.expert_token = 10;
  options.times.layer_token = 3;
  const ReplayResult result = decode(options, routes, 8);
  EXPECT_EQ(result.passes, 8u);
  EXPECT_EQ(result.tokens, 64u);
  std::uint64_t distinct = 0;
  for (std::int32_t step = 0; step < 8 * kGeometry.layers; ++step) {
    std::vector<bool> seen(kGeometry.experts_per_layer);
    for (std::int32_t t = step / kGeometry.layers * 8; t < step / kGeometry.layers * 8 + 8; ++t) {
      for (std::int32_t k = 0; k < kGeometry.top_k; ++k) {
        const std::int32_t layer = step % kGeometry.layers;
        const auto at = (std::size_t(t) * kGeometry.layers + layer) * kGeometry.top_k + k;
        distinct += !seen[routes[at]];
        seen[routes[at]] = true;
      }
    }
  }
  EXPECT_EQ(result.counters.hits_resident + result.counters.misses, distinct);
  EXPECT_EQ(result.counters.compute_ns, Nanos(distinct) * 100 + Nanos(routes.size()) * 10);
}

// Foresees one expert per layer: what `observe` was told must reach it.
class Listener final : public Predictor {
 public:
  explicit Listener(std::vector<float>& heard) : heard_(heard) {}
  std::string name() const override { return "listener"; }
  void reset() override {}
  void observe(const Glimpse& glimpse) override {
    for (std::int32_t i = 0; i < glimpse.tokens * glimpse.top_k; ++i) {
      heard_.push_back(float(glimpse.experts[i]));
      heard_.push_back(glimpse.weights == nullptr ? -1 : glimpse.weights[i]);
    }
  }

 private:
  std::vector<float>& heard_;
};

TEST(Replay, APredictorHearsRoutesAndGates) {
  const auto routes = make_routes(kGeometry, 6, false, 1);
  std::vector<float> gates(routes.size()), heard;
  for (std::size_t i = 0; i < gates.size(); ++i) gates[i] = float(i) / 100;
  ReplayOptions options = options_for(kGeometry, 24);
  options.predictor = [&] { return std::make_unique<Listener>(heard); };
  Replay replay(options);
  replay.decode({routes, gates, {}});
  ASSERT_EQ(heard.size(), 2 * routes.size());
  for (std::size_t i = 0; i < routes.size(); ++i) {
    EXPECT_EQ(heard[2 * i], float(routes[i]));
    EXPECT_EQ(heard[2 * i + 1], gates[i]);
  }
  heard.clear();
  replay.decode({routes, {}, {}});
  EXPECT_EQ(heard[1], -1);
  EXPECT_EQ(replay.result().counters.foresight_steps, 12u * kGeometry.layers);
}

// Remembers what routers read.
class Reader final : public Predictor {
 public:
  explicit Reader(std::vector<float>& read) : read_(read) {}
  std::string name() const override { return "reader"; }
  std::int32_t hidden_width() const override { return 2; }
  void reset() override {}
  void observe(const Glimpse& glimpse) override {
    if (glimpse.hidden == nullptr) return;
    read_.insert(read_.end(), glimpse.hidden, glimpse.hidden + 2);
  }

 private:
  std::vector<float>& read_;
};

TEST(Replay, APredictorIsShownWhatTheRoutersReadOfThePasssLastToken) {
  const std::int32_t tokens = 5, layers = kGeometry.layers;
  const auto routes = make_routes(kGeometry, tokens, false, 1);
  std::vector<float> hidden(tokens * layers * 2), read, expected;
  for (std::size_t i = 0; i < hidden.size(); ++i) hidden[i] = float(i);
  ReplayOptions options = options_for(kGeometry, 24);
  options.predictor = [&] { return std::make_unique<Reader>(read); };
  Replay replay(options);
  replay.decode({routes, {}, {}, hidden}, 2);  // tokens 0 1, 2 3, 4
  for (std::int32_t last : {1, 3, 4}) {
    const auto from = hidden.begin() + last * layers * 2;
    expected.insert(expected.end(), from, from + layers * 2);
  }
  EXPECT_EQ(read, expected);
  replay.decode({routes, {}, {}});
  EXPECT_EQ(read.size(), expected.size());
  hidden.pop_back();
  EXPECT_THROW(replay.decode({routes, {}, {}, hidden}), InvalidArgument);
}

TEST(Replay, ALayerThatWaitsCostsTheProcessorItsShare) {
  const auto routes = make_routes(kGeometry, 8, false, 1);
  ReplayOptions options = options_for(kGeometry, 24);
  Replay plain(options);
  plain.decode({routes, {}, {}});
  options.times.wait = 1000;
  Replay costly(options), seen(options);
  costly.decode({routes, {}, {}});
  const Counters a = plain.result().counters, b = costly.result().counters;
  EXPECT_EQ(a.misses, b.misses);
  // Layer steps with a miss, however many: those in which the count of misses rises.
  Nanos waits = 0;
  const std::size_t row = std::size_t(kGeometry.layers) * kGeometry.top_k;
  std::vector<LayerCounts> before(kGeometry.layers);
  for (std::size_t token = 0; token < 8; ++token) {
    seen.decode({std::span(routes).subspan(token * row, row), {}, {}});
    const auto now = seen.result().layers;
    for (std::size_t layer = 0; layer < now.size(); ++layer) {
      waits += now[layer].miss > before[layer].miss;
    }
    before = now;
  }
  EXPECT_LT(waits, Nanos(a.misses));
  EXPECT_EQ(b.now_ns - a.now_ns, waits * 1000);
}

TEST(Replay, WishesMoveDuringCompute) {
  // A wished expert of two chunks lands while the processor is busy, although no thread runs.
  ReplayOptions options = options_for(kGeometry, 24);
  options.engine.mover.prefetch_chunks = 1;
  options.times.layer = 1500;
  Replay replay(options);
  std::vector<std::int32_t> routes;
  for (std::int32_t layer = 0; layer < kGeometry.layers; ++layer) {
    for (std::int32_t k = 0; k < kGeometry.top_k; ++k) routes.push_back(k);
  }
  replay.decode({routes, {}, {}});
  const Prefetch wish{{1, 9}, 1.0f, 0};
  replay.engine().want({&wish, 1});
  replay.decode({routes, {}, {}});
  EXPECT_EQ(replay.engine().state({1, 9}), Residency::resident);
  EXPECT_EQ(replay.result().counters.bytes_prefetch_unused, 1000u);
}

void expect_refused(const std::function<void()>& call, const std::string& words) {
  try {
    call();
    FAIL() << "accepted; expected words: " << words;
  } catch (const InvalidArgument& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr(words));
  }
}

TEST(Replay, RefusesWhatCannotBe) {
  const auto with = [](auto change) {
    ReplayOptions options = options_for(kGeometry, 24);
    change(options);
    return [options] { Replay replay(options); };
  };
  expect_refused(with([](ReplayOptions& o) { o.times.expert = -5; }), "-5");
  expect_refused(with([](ReplayOptions& o) { o.engine.slots = 3; }), "3 slots");
  expect_refused(with([](ReplayOptions& o) { o.engine.policy = "fifo"; }), "'fifo'");
  expect_refused(with([](ReplayOptions& o) { o.link.bytes_per_second = 0; }), "bandwidth");
  expect_refused(with([](ReplayOptions& o) { o.expert_bytes = 0; }), "0 bytes");

  Replay replay(options_for(kGeometry, 24));
  auto routes = make_routes(kGeometry, 2, false, 1);
  const auto decode_it = [&] { replay.decode({routes, {}, {}}); };
  routes.pop_back();
  expect_refused(decode_it, "whole number of tokens");
  routes.push_back(16);
  expect_refused(decode_it, "expert 16 in layer 3");
  routes.back() = -1;
  expect_refused(decode_it, "expert -1");
  routes.back() = routes[routes.size() - 2];
  expect_refused(decode_it, "twice");
  routes = make_routes(kGeometry, 2, false, 1);
  expect_refused([&] { replay.decode({routes, {}, {}}, 0); }, "at least one token");
  const std::vector<float> gates(3);
  expect_refused([&] { replay.decode({routes, gates, {}}); }, "gates");
  const std::vector<std::int64_t> few(5), many(routes.size() + 1);
  expect_refused([&] { replay.decode({routes, {}, few}); }, "next uses");
  expect_refused([&] { replay.decode({routes, {}, many}); }, "next uses");
  // What was refused leaves a replay that goes on.
  replay.restart();
  replay.decode({routes, {}, {}});
}

}  // namespace
}  // namespace prophet::testing
