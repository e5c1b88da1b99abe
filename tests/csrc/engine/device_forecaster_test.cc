// The forecaster on the emulated device against the one on the CPU, and an engine whose device
// forecasts for it.
#include "engine/device_forecaster.h"

#include <gmock/gmock.h>

#include <cmath>
#include <mutex>
#include <thread>

#include "core/error.h"
#include "engine/hit_path_rig.h"
#include "predict/bank_predictor.h"
#include "predict/small_bank.h"

namespace prophet {
namespace {

constexpr float kClose = 1e-5f;

BankConfig network(const Geometry& geometry, std::int32_t hidden) {
  BankConfig c = small_bank::config();
  c.geometry = geometry;
  c.hidden = hidden;
  return c;
}

std::shared_ptr<const BankNetwork> make_network(const BankConfig& c) {
  return std::make_shared<const BankNetwork>(c, small_bank::weights(c));
}

// Batches as their rows of a glimpse.
struct Seen {
  explicit Seen(const Batch& batch) : ids(batch.ids.begin(), batch.ids.end()), batch_(batch) {}
  Glimpse glimpse(std::int32_t layer, bool hidden) const {
    Glimpse g{};
    g.layer = layer;
    g.tokens = batch_.tokens;
    g.top_k = batch_.top_k;
    g.experts = ids.data();
    g.weights = batch_.weights.data();
    if (hidden) g.hidden = batch_.x.data() + std::size_t(batch_.tokens - 1) * kHidden;
    return g;
  }
  std::vector<std::int32_t> ids;

 private:
  const Batch& batch_;
};

class DeviceForecasterTest : public HitPathTest {
 protected:
  HitPathCall call(std::int32_t layer, const Batch& batch, const DeviceBatch& there) const {
    HitPathCall c{};
    c.layer = layer;
    c.tokens = batch.tokens;
    c.top_k = batch.top_k;
    c.hidden = kHidden;
    c.x = there.x.there.data();
    c.ids = there.ids.there.as<std::int64_t>();
    c.routing = there.weights.there.data();
    return c;
  }

  std::vector<float> fetch(const DeviceForecaster& forecaster) {
    std::vector<float> out(std::size_t(forecaster.floats()));
    EXPECT_EQ(api().copy_async(out.data(), forecaster.forecasts(), out.size() * 4,
                               CudaCopy::to_host, stream_->get()),
              0);
    EXPECT_EQ(api().stream_synchronize(stream_->get()), 0);
    return out;
  }

  // What the CPU's predictor says, in the order of Glimpse::told; NaN past the last layer.
  static std::vector<float> said(BankPredictor& bank, std::int32_t layer) {
    const BankConfig& c = bank.network().config();
    const std::size_t experts = bank.network().experts();
    std::vector<float> out((2 + std::size_t(c.ahead)) * experts, std::nanf(""));
    EXPECT_TRUE(bank.next_use(layer, {out.data(), experts}));
    std::vector<Forecast> all;
    bank.forecast(layer, all);
    std::fill_n(out.begin() + std::ptrdiff_t(experts), experts, 0.0f);
    for (const Forecast& one : all) {
      if (one.horizon == c.geometry.layers && one.key.layer == layer) {
        out[experts + std::size_t(one.key.expert)] = one.p;
      }
    }
    for (std::int32_t f = 1; f <= bank.horizons(layer); ++f) {
      bank.probabilities(layer, f, {out.data() + (1 + std::size_t(f)) * experts, experts});
    }
    return out;
  }

  static void expect_close(const std::vector<float>& got, const std::vector<float>& want,
                           std::size_t experts) {
    for (std::size_t i = 0; i < want.size(); ++i) {
      if (std::isnan(want[i])) continue;
      // The host leaves out what is hardly likely.
      if (i / experts == 1 && want[i] == 0) {
        EXPECT_LT(got[i], kLeastForecast + kClose);
      } else {
        EXPECT_NEAR(got[i], want[i], kClose * std::max(1.0f, std::abs(want[i]))) << i;
      }
    }
  }
};

struct Case {
  const char* name;
  BankConfig config;
};

std::vector<Case> cases() {
  const Geometry geometry{4, 40, 5};
  Case all{"all", network(geometry, kHidden)};
  Case bare{"bare", network(geometry, 0)};
  bare.config.decays.clear();
  bare.config.bank.clear();
  bare.config.recent.clear();
  bare.config.pairs = 0;
  bare.config.latents = 0;
  Case wide{"wide", network({2, 70, 8}, kHidden)};
  wide.config.rank = 72;
  wide.config.heads = 6;
  Case alone{"one layer", network({1, 9, 3}, 0)};
  alone.config.limit = 0;
  return {all, bare, wide, alone};
}

TEST_F(DeviceForecasterTest, SaysWhatTheCpuSaysAndHistoryGoesThereAndBack) {
  stream_ = std::make_unique<DeviceStream>(api());
  for (const Case& each : cases()) {
    SCOPED_TRACE(each.name);
    const Geometry& geometry = each.config.geometry;
    const std::size_t experts = std::size_t(geometry.experts_per_layer);
    const bool hidden = each.config.hidden > 0;
    const auto weights = make_network(each.config);
    BankPredictor cpu(weights), moving(weights);
    DeviceForecaster device(tables_, moving, hidden ? kHidden : 0);
    EXPECT_FALSE(device.here());
    std::mt19937 random(5);
    for (int step = 0; step < 8 * geometry.layers; ++step) {
      const std::int32_t layer = step % geometry.layers;
      const Batch batch(1 + step % 3, geometry, random);
      const Seen seen(batch);
      cpu.observe(seen.glimpse(layer, hidden));
      const std::vector<float> want = said(cpu, layer);
      if (step / 5 % 2 == 0) {  // by turns the host's and the device's
        if (device.here()) device.give(stream_->get());
        moving.observe(seen.glimpse(layer, hidden));
        expect_close(said(moving, layer), want, experts);
        continue;
      }
      if (!device.here()) device.take(stream_->get());
      DeviceBatch there(api(), batch);
      there.send(api(), batch, stream_->get());
      ASSERT_EQ(device.queue(call(layer, batch, there), stream_->get()), 0);
      const std::vector<float> got = fetch(device);
      expect_close(got, want, experts);
      // Handed over, they are the bank's own word.
      BankPredictor told(weights);
      Glimpse glimpse = seen.glimpse(layer, hidden);
      glimpse.told = got.data();
      told.observe(glimpse);
      expect_close(said(told, layer), want, experts);
    }
  }
}

TEST_F(DeviceForecasterTest, WhatTheKernelHasNoRoomForIsRefusedInASentence) {
  const auto refused = [&](const BankConfig& config) {
    BankPredictor bank(make_network(config));
    EXPECT_THROW(DeviceForecaster(tables_, bank, 0), InvalidArgument);
  };
  BankConfig config = network({2, 9, 3}, 0);
  config.heads = 9;
  refused(config);
  config = network({2, 9, 3}, 0);
  config.recent.push_back({8, false});  // nine rows
  refused(config);
  config = network({2, 40, 33}, 0);
  refused(config);
  config = network({1, 9, 3}, 0);
  config.rank = 6000;  // shared memory
  config.ahead = 0;
  config.pairs = 0;
  refused(config);
}

// A learned forecaster that counts who works: what the engine's own do not show.
class Watched final : public Predictor {
 public:
  struct Work {
    std::mutex mutex;
    int told = 0, own = 0;
    std::vector<std::vector<float>> gaps;
    std::vector<std::vector<std::int64_t>> streams;
  };
  Watched(std::shared_ptr<const BankNetwork> network, Work& work) : bank_(network), work_(work) {}
  std::string name() const override { return bank_.name(); }
  std::int32_t hidden_width() const override { return bank_.hidden_width(); }
  BankPredictor* bank() override { return &bank_; }
  void reset() override { bank_.reset(); }
  void observe(const Glimpse& glimpse) override {
    std::lock_guard<std::mutex> lock(work_.mutex);
    ++(glimpse.told ? work_.told : work_.own);
    work_.streams.emplace_back();
    if (glimpse.streams) {
      work_.streams.back().assign(glimpse.streams, glimpse.streams + glimpse.tokens);
    }
    bank_.observe(glimpse);
  }
  bool next_use(std::int32_t layer, std::span<float> gaps) override {
    const bool said = bank_.next_use(layer, gaps);
    std::lock_guard<std::mutex> lock(work_.mutex);
    work_.gaps.emplace_back(gaps.begin(), gaps.end());
    return said;
  }
  void forecast(std::int32_t layer, std::vector<Forecast>& out) override {
    bank_.forecast(layer, out);
  }

 private:
  BankPredictor bank_;
  Watched::Work& work_;
};

class ForecastingEngine : public DeviceForecasterTest {
 protected:
  void begin(bool on_device, std::int32_t slots, std::int32_t hidden = kHidden) {
    work_ = std::make_unique<Watched::Work>();
    options_.device_forecasts = on_device;
    options_.trust_blindly = true;
    options_.prefetch.last = 2;
    start(slots, std::make_unique<Watched>(make_network(network(kGeometry, hidden)), *work_));
  }
  void end() {
    engine_.reset();
    backend_.reset();
    stream_.reset();
  }
  void wait_for_steps(std::uint64_t steps) {
    while (engine_->counters().foresight_steps < steps) std::this_thread::yield();
  }
  std::unique_ptr<Watched::Work> work_;
};

TEST_F(ForecastingEngine, TheDeviceForecastsWithoutTheHostAndSaysTheSame) {
  std::vector<std::vector<float>> gaps[2];
  for (const bool on_device : {false, true}) {
    begin(on_device, 5);
    EXPECT_EQ(engine_->device_forecasts_lack().empty(), on_device);
    std::mt19937 random(7);
    std::uint64_t steps = 0;
    for (int token = 0; token < 8; ++token) {
      for (std::int32_t layer = 0; layer < kGeometry.layers; ++layer) {
        // Now and then a prefill that exceeds the slots: the host hears of it first.
        Batch batch(token % 4 == 3 ? 4 : 1, kGeometry, random);
        batch.run(*engine_, layer);
        expect_right(batch, layer, batch.out);
        ++steps;
      }
    }
    wait_for_steps(steps);
    gaps[on_device] = work_->gaps;
    EXPECT_EQ(work_->told, on_device ? 6 * kGeometry.layers : 0);
    EXPECT_EQ(work_->told + work_->own, int(steps));
    EXPECT_EQ(engine_->foresight_failure(), "");
    expect_bytes_add_up(*engine_);
    end();
  }
  ASSERT_EQ(gaps[0].size(), gaps[1].size());
  for (std::size_t i = 0; i < gaps[0].size(); ++i) {
    for (std::size_t e = 0; e < gaps[0][i].size(); ++e) {
      EXPECT_NEAR(gaps[1][i][e], gaps[0][i][e], kClose * gaps[0][i][e]) << i;
    }
  }
}

TEST_F(ForecastingEngine, NoSynchronisingCallAndCapturedIntoAGraph) {
  begin(true, kGeometry.total());
  fill();
  std::mt19937 random(3);
  std::vector<Batch> batches;
  std::vector<std::unique_ptr<DeviceBatch>> there;
  for (int layer = 0; layer < kGeometry.layers; ++layer) {
    batches.emplace_back(1, kGeometry, random);
    there.push_back(std::make_unique<DeviceBatch>(api(), batches.back()));
    there.back()->send(api(), batches.back(), stream_->get());
  }
  const auto layer_of = [&](int layer) {
    return there[layer]->layer(batches[layer], stream_->get());
  };
  engine_->forward(0, layer_of(0));  // buffers grow
  ASSERT_EQ(api().stream_synchronize(stream_->get()), 0);
  const std::uint64_t before = api().synchronising_calls();
  for (int layer = 1; layer < kGeometry.layers; ++layer) engine_->forward(layer, layer_of(layer));
  EXPECT_EQ(api().synchronising_calls(), before);
  ASSERT_EQ(api().begin_capture(stream_->get()), 0);
  for (int layer = 0; layer < kGeometry.layers; ++layer) {
    LayerBatch call = layer_of(layer);
    call.captured = true;
    engine_->forward(layer, call);
  }
  void* graph = nullptr;
  ASSERT_EQ(api().end_capture(stream_->get(), &graph), 0);
  for (int token = 0; token < 3; ++token) ASSERT_EQ(api().graph_launch(graph, stream_->get()), 0);
  ASSERT_EQ(api().stream_synchronize(stream_->get()), 0);
  wait_for_steps(4 * kGeometry.layers);
  EXPECT_EQ(work_->told, 4 * kGeometry.layers);
  EXPECT_EQ(work_->own, 0);
  ASSERT_EQ(api().graph_destroy(graph), 0);
}

TEST_F(ForecastingEngine, RowsOfSeveralRequestsAreNamedAndTheHostForecasts) {
  begin(true, 6);
  std::mt19937 random(4);
  std::uint64_t steps = 0;
  const auto token = [&](std::int32_t rows, std::vector<std::int64_t> streams) {
    engine_->streams(std::move(streams));
    for (std::int32_t layer = 0; layer < kGeometry.layers; ++layer, ++steps) {
      Batch batch(rows, kGeometry, random);
      batch.run(*engine_, layer);
      expect_right(batch, layer, batch.out);
    }
    wait_for_steps(steps);
  };
  token(2, {4, 9});
  token(1, {});
  token(2, {9, 4});
  token(2, {9});  // no name for each: one sequence, and the host's
  ASSERT_EQ(work_->streams.size(), 12u);
  using Rows = std::vector<std::int64_t>;
  for (std::size_t i = 0; i < 12; ++i) {
    EXPECT_EQ(work_->streams[i], i < 3 ? Rows({4, 9}) : i >= 6 && i < 9 ? Rows({9, 4}) : Rows());
  }
  EXPECT_EQ(work_->told, 3);
  EXPECT_EQ(work_->own, 9);
}

TEST_F(ForecastingEngine, WhatCannotBeThereStaysWithTheHost) {
  options_.device_forecasts = true;
  const BankConfig wide = [] {
    BankConfig c = network(kGeometry, 0);
    c.heads = 9;
    return c;
  }();
  start(5, std::make_unique<BankPredictor>(make_network(wide)));
  EXPECT_THAT(engine_->device_forecasts_lack(), testing::HasSubstr("heads"));
  std::mt19937 random(1);
  Batch batch(1, kGeometry, random);
  batch.run(*engine_, 0);
  expect_right(batch, 0, batch.out);
  wait_for_steps(1);
  EXPECT_EQ(engine_->foresight_failure(), "");
}

}  // namespace
}  // namespace prophet
