// File, host pool, device: how far a forecast brings an expert, and what that saves when the router
// asks, on the CUDA backend over the model of its runtime.
#include <gmock/gmock.h>

#include <deque>
#include <filesystem>
#include <memory>
#include <random>
#include <thread>

#include "core/error.h"
#include "device/cuda_rig.h"
#include "engine/engine.h"
#include "store/synthetic_store.h"

namespace prophet {
namespace {

using testing_device::CudaModel;
using testing_device::small_pool;
using testing_device::TempFiles;

constexpr Geometry kGeometry{3, 8, 2};
constexpr std::uint64_t kExpert = 3 << 16;  // three blocks of the pool

// After the first layer step: what the test says.
class Once final : public Predictor {
 public:
  explicit Once(std::vector<Forecast> forecasts) : forecasts_(std::move(forecasts)) {}
  std::string name() const override { return "once"; }
  void reset() override {}
  void observe(const Glimpse&) override { ++steps_; }
  void forecast(std::int32_t, std::vector<Forecast>& out) override {
    if (steps_ == 1) out = forecasts_;
  }

 private:
  std::vector<Forecast> forecasts_;
  int steps_ = 0;
};

struct Machine {
  explicit Machine(float staging, std::vector<Forecast> forecasts) {
    store = std::make_shared<SyntheticStore>(kGeometry, kExpert, 4096);
    CudaOptions options = small_pool(IoKind::pread, 40);
    options.api = model.api();
    backend = make_cuda_backend(options);
    backend->open({files.make("experts", 0, store->file_bytes())});
    EngineOptions engine_options;
    engine_options.slots = 8;
    engine_options.background = false;
    engine_options.trust_blindly = true;
    engine_options.mover.chunk_bytes = 1 << 16;
    engine_options.prefetch.last = 2;
    engine_options.prefetch.least = 0.5f;
    engine_options.prefetch.staging = staging;
    engine = std::make_unique<Engine>(store, backend, engine_options,
                                      std::make_unique<Once>(std::move(forecasts)));
  }
  void serve(std::int32_t layer, std::vector<std::int32_t> experts) {
    engine->step(layer);
    engine->observe({layer, 1, std::int32_t(experts.size()), experts.data(), nullptr, nullptr});
    Lease lease;
    engine->lease(layer, experts, lease);
    for (std::int32_t expert : experts) {
      const std::byte* slot =
          engine->arena().data() + std::size_t(engine->wait(lease, expert)) * store->slot_bytes();
      const std::uint64_t offset = store->where({layer, expert})[0].offset;
      for (std::uint64_t at = 0; at < kExpert; at += 997) {
        ASSERT_EQ(slot[at], ManualBackend::byte_at(0, offset + at));
      }
    }
    engine->release(lease);
  }
  void settle() {
    while (engine->progress()) std::this_thread::yield();
  }

  CudaModel model;
  TempFiles files;
  std::shared_ptr<SyntheticStore> store;
  std::shared_ptr<Backend> backend;
  std::unique_ptr<Engine> engine;
};

const std::vector<Forecast> kForecasts{
    {{1, 3}, 0.9f, 1}, {{1, 4}, 0.3f, 1}, {{1, 5}, 0.3f, 1}, {{1, 6}, 0.01f, 1}};

TEST(ThreeTiers, AForecastTravelsAsFarAsItIsTrusted) {
  Machine machine(0.2f, kForecasts);
  machine.serve(0, {0, 1});
  machine.settle();
  EXPECT_EQ(machine.engine->state({1, 3}), Residency::resident);
  for (std::int32_t expert : {4, 5, 6}) {
    EXPECT_EQ(machine.engine->state({1, expert}), Residency::absent);
  }
  Counters c = machine.engine->counters();
  EXPECT_EQ(c.bytes_staged, 4 * kExpert + kExpert);  // two demanded, one brought, two staged
  EXPECT_EQ(c.bytes_moved, 3 * kExpert);
  EXPECT_EQ(c.bytes_found_staged, 0u);
  EXPECT_EQ(c.evictions, 0u);

  machine.serve(1, {4, 6});
  c = machine.engine->counters();
  EXPECT_EQ(c.misses, 4u);                   // in the pool is not on the device ...
  EXPECT_EQ(c.bytes_found_staged, kExpert);  // ... but needs no file
  EXPECT_EQ(c.bytes_staged, 6 * kExpert);    // the fourth was not worth reading early
  EXPECT_EQ(c.bytes_moved, c.bytes_demand + c.bytes_prefetch_unused);
}

TEST(ThreeTiers, WithOneThresholdNothingIsStagedAhead) {
  Machine machine(1, kForecasts);
  machine.serve(0, {0, 1});
  machine.settle();
  EXPECT_EQ(machine.engine->counters().bytes_staged, 3 * kExpert);
  machine.serve(1, {4, 6});
  EXPECT_EQ(machine.engine->counters().bytes_found_staged, 0u);
}

TEST(ThreeTiers, AnEvictedExpertComesBackFromThePool) {
  Machine machine(1, {});
  for (std::int32_t first : {0, 2, 4, 6, 0}) machine.serve(0, {first, first + 1});
  for (std::int32_t first : {0, 2}) machine.serve(1, {first, first + 1});
  machine.serve(0, {2, 3});
  const Counters c = machine.engine->counters();
  EXPECT_GT(c.evictions, 0u);
  EXPECT_EQ(c.bytes_staged + c.bytes_found_staged, c.bytes_moved);
  EXPECT_EQ(c.bytes_staged, 12 * kExpert);  // each expert is read once: the pool has room for 13
}

// The pool as a list, block by block: which experts were read from the file. `touched`: those that
// leave fast memory count as used then.
class Pool {
 public:
  Pool(std::size_t blocks, bool touched) : blocks_(blocks), touched_(touched) {}
  void serve(std::int32_t expert, std::int32_t left) {
    for (int part = 0; part < 3; ++part) {
      if (touched_ && left >= 0 && std::erase(order_, 3 * left + part)) {
        order_.push_back(3 * left + part);
      }
      if (!std::erase(order_, 3 * expert + part)) {
        ++reads;
        if (order_.size() == blocks_) order_.pop_front();
      }
      order_.push_back(3 * expert + part);
    }
  }
  std::uint64_t reads = 0;  // blocks

 private:
  std::size_t blocks_;
  bool touched_;
  std::deque<std::int32_t> order_;  // used last at the end
};

TEST(ThreeTiers, WhatLeavesTheDeviceStaysLongerInThePoolAndSavesReads) {
  Machine machine(1, {});
  Pool pool(40, true), plain(40, false);
  std::mt19937 random(3);
  std::vector<double> weights;
  for (std::int32_t i = 0; i < kGeometry.total(); ++i) weights.push_back(1.0 / (1 + i * 7 % 24));
  std::discrete_distribution<std::int32_t> popular(weights.begin(), weights.end());
  std::vector<bool> here(kGeometry.total(), false);
  for (int step = 0; step < 800; ++step) {
    const std::int32_t expert = popular(random);
    const bool missed = !here[expert];
    machine.serve(kGeometry.key(expert).layer, {kGeometry.key(expert).expert});
    std::int32_t left = -1;
    for (std::int32_t i = 0; i < kGeometry.total(); ++i) {
      const bool resident = machine.engine->state(kGeometry.key(i)) == Residency::resident;
      if (here[i] && !resident) left = i;
      here[i] = resident;
    }
    if (!missed) continue;
    pool.serve(expert, left);
    plain.serve(expert, left);
  }
  EXPECT_EQ(machine.engine->counters().bytes_staged, pool.reads * (kExpert / 3));
  EXPECT_LT(pool.reads, 0.97 * plain.reads);
}

// Leases two experts of layer 2 and waits for both.
void demand(Machine& machine) {
  const std::vector<std::int32_t> experts{6, 7};
  machine.engine->step(2);
  Lease lease;
  machine.engine->lease(2, experts, lease);
  const auto end = [&] { machine.engine->release(lease); };
  try {
    for (std::int32_t expert : experts) machine.engine->wait(lease, expert);
  } catch (const Error&) {
    end();
    throw;
  }
  end();
}

TEST(ThreeTiers, ACopyThatFailsOnALiveDeviceIsADeviceErrorAndTheNextOneWorks) {
  Machine machine(1, {});
  machine.serve(0, {0, 1});
  machine.model.fail("copy_async", 1, kCudaOutOfMemory);
  try {
    demand(machine);
    FAIL() << "the copy should have failed";
  } catch (const DeviceError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("copying 65536 bytes to the device failed"));
  }
  EXPECT_EQ(machine.backend->failure(), "");
  machine.serve(2, {6, 7});
}

TEST(ThreeTiers, AFileThatCannotBeReadIsAReadErrorOnADeviceToo) {
  Machine machine(1, {});
  machine.serve(0, {0, 1});
  std::filesystem::resize_file(machine.files.path("experts"), 4096);
  EXPECT_THROW(demand(machine), ReadError);
}

TEST(ThreeTiers, ALostDeviceIsADeviceErrorOfTheStep) {
  Machine machine(0.2f, kForecasts);
  machine.serve(0, {0, 1});
  machine.model.lose_device();
  EXPECT_THROW(demand(machine), DeviceError);
  machine.engine->close();
}

}  // namespace
}  // namespace prophet
