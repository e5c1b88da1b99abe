// Layers served by an emulated device, without the host where all experts are there.
#include <cmath>
#include <cstring>
#include <filesystem>

#include "core/error.h"
#include "engine/hit_path_host.h"
#include "engine/hit_path_rig.h"

namespace prophet {
namespace {

TEST_F(HitPathTest, HostBatchesAreRightUnderEveryScheduleAndFewSlots) {
  for (const char* seed : {"1", "2", "3"}) {
    machine({{"SEED", seed}});
    start(4);
    std::mt19937 random(7);
    for (int step = 0; step < 12; ++step) {
      for (std::int32_t layer = 0; layer < kGeometry.layers; ++layer) {
        Batch batch(1 + step % 3, kGeometry, random);  // three tokens may exceed the slots: waves
        batch.run(*engine_, layer);
        expect_right(batch, layer, batch.out);
      }
    }
    const Counters c = engine_->counters();
    EXPECT_GT(c.misses, 0u);
    EXPECT_EQ(c.layer_steps, 36u);
    expect_bytes_add_up(*engine_);
    engine_.reset();
    backend_.reset();
    stream_.reset();
  }
}

TEST_F(HitPathTest, ALayerWhoseExpertsAreThereMakesNoSynchronisingCall) {
  start(kGeometry.total());
  fill();
  std::mt19937 random(3);
  std::vector<Batch> batches;
  std::vector<std::unique_ptr<DeviceBatch>> there;
  for (int i = 0; i < 9; ++i) {
    batches.emplace_back(2, kGeometry, random);
    there.push_back(std::make_unique<DeviceBatch>(api(), batches.back()));
    there.back()->send(api(), batches.back(), stream_->get());
  }
  engine_->forward(0, there[0]->layer(batches[0], stream_->get()));  // buffers grow
  ASSERT_EQ(api().stream_synchronize(stream_->get()), 0);
  const std::uint64_t before = api().synchronising_calls();
  for (int i = 0; i < 9; ++i) {
    engine_->forward(i % 3, there[i]->layer(batches[i], stream_->get()));
    there[i]->fetch(api(), stream_->get());
  }
  EXPECT_EQ(api().synchronising_calls(), before);
  ASSERT_EQ(api().stream_synchronize(stream_->get()), 0);
  for (int i = 0; i < 9; ++i) expect_right(batches[i], i % 3, there[i]->result());
  EXPECT_EQ(engine_->counters().misses, std::uint64_t(kGeometry.total()));
}

TEST_F(HitPathTest, MissesOfLayersQueuedAheadAreServedWhileTheDeviceStands) {
  for (const char* seed : {"4", "5"}) {
    machine({{"SEED", seed}, {"LATENCY_US", "200"}});
    start(4);
    std::mt19937 random(11);
    std::vector<Batch> batches;
    std::vector<std::unique_ptr<DeviceBatch>> there;
    for (int i = 0; i < 24; ++i) {
      batches.emplace_back(2, kGeometry, random);
      there.push_back(std::make_unique<DeviceBatch>(api(), batches.back()));
      there.back()->send(api(), batches.back(), stream_->get());
    }
    for (int i = 0; i < 24; ++i) {
      // Wishes evict while the device runs: their slots are written only when it has passed.
      const std::int32_t next = (i + 1) % 3;
      const Prefetch wish{{next, std::int32_t(random() % 8)}, 0.9f, i + 1};
      engine_->want({&wish, 1});
      engine_->forward(i % 3, there[i]->layer(batches[i], stream_->get()));
      there[i]->fetch(api(), stream_->get());
    }
    ASSERT_EQ(api().stream_synchronize(stream_->get()), 0);
    for (int i = 0; i < 24; ++i) expect_right(batches[i], i % 3, there[i]->result());
    engine_.reset();
    backend_.reset();
    stream_.reset();
  }
}

TEST_F(HitPathTest, ACapturedTokenIsReplayedWithOtherRoutesAndServedWhereExpertsAreMissing) {
  start(6);
  std::mt19937 random(5);
  std::vector<Batch> batches;
  std::vector<std::unique_ptr<DeviceBatch>> there;
  for (int layer = 0; layer < 3; ++layer) {
    batches.emplace_back(1, kGeometry, random);
    there.push_back(std::make_unique<DeviceBatch>(api(), batches.back()));
    there.back()->send(api(), batches.back(), stream_->get());
    engine_->forward(layer, there.back()->layer(batches.back(), stream_->get()));
  }
  ASSERT_EQ(api().stream_synchronize(stream_->get()), 0);
  ASSERT_EQ(api().begin_capture(stream_->get()), 0);
  for (int layer = 0; layer < 3; ++layer) {
    LayerBatch call = there[layer]->layer(batches[layer], stream_->get());
    call.captured = true;
    engine_->forward(layer, call);
  }
  void* graph = nullptr;
  ASSERT_EQ(api().end_capture(stream_->get(), &graph), 0);
  const std::uint64_t before = engine_->counters().misses;
  for (int token = 0; token < 8; ++token) {
    for (int layer = 0; layer < 3; ++layer) {
      batches[layer] = Batch(1, kGeometry, random);
      there[layer]->send(api(), batches[layer], stream_->get());
    }
    const std::uint64_t calls = api().synchronising_calls();
    ASSERT_EQ(api().graph_launch(graph, stream_->get()), 0);
    for (int layer = 0; layer < 3; ++layer) there[layer]->fetch(api(), stream_->get());
    EXPECT_EQ(api().synchronising_calls(), calls);
    ASSERT_EQ(api().stream_synchronize(stream_->get()), 0);
    for (int layer = 0; layer < 3; ++layer) {
      expect_right(batches[layer], layer, there[layer]->result());
    }
  }
  EXPECT_GT(engine_->counters().misses, before);
  Lease lease;
  const std::int32_t first = 0;
  EXPECT_THROW(engine_->lease(0, {&first, 1}, lease), StateError);
  ASSERT_EQ(api().graph_destroy(graph), 0);
}

TEST_F(HitPathTest, LeasesAndQueuedLayersTakeTurns) {
  start(5);
  std::mt19937 random(9);
  for (int step = 0; step < 10; ++step) {
    Batch batch(1, kGeometry, random);
    batch.run(*engine_, step % 3);
    expect_right(batch, step % 3, batch.out);
    const std::vector<std::int32_t> some{std::int32_t(random() % 4),
                                         4 + std::int32_t(random() % 4)};
    const std::int32_t layer = (step + 1) % 3;
    Lease lease;
    engine_->lease(layer, some, lease);
    for (std::int32_t expert : some) {
      const std::int32_t slot = engine_->wait(lease, expert);
      std::vector<std::byte> got(kExpertBytes), want(kExpertBytes);
      engine_->read(
          std::uint64_t(slot) * store_->slot_bytes() + store_->piece_at({layer, expert}, 0), got);
      float_content(0, file_offset({layer, expert}), want);
      EXPECT_EQ(std::memcmp(got.data(), want.data(), got.size()), 0);
    }
    engine_->release(lease);
  }
}

TEST_F(HitPathTest, AnExpertThatCannotBeReadIsAReadErrorAndItsLayerNoNumber) {
  start(4);
  std::mt19937 random(2);
  std::filesystem::resize_file(file_->path(), 4096);
  Batch batch(1, kGeometry, random);
  batch.ids = {5, 6};
  DeviceBatch there(api(), batch);
  there.send(api(), batch, stream_->get());
  engine_->forward(1, there.layer(batch, stream_->get()));
  there.fetch(api(), stream_->get());
  ASSERT_EQ(api().stream_synchronize(stream_->get()), 0);
  for (float value : there.result()) EXPECT_TRUE(std::isnan(value));
  EXPECT_THROW(engine_->forward(1, there.layer(batch, stream_->get())), ReadError);
  EXPECT_THROW(batch.run(*engine_, 1), ReadError);
}

TEST_F(HitPathTest, ASlotIsOverwrittenOnlyWhenTheDeviceHasSeenThatItsExpertLeft) {
  stream_ = std::make_unique<DeviceStream>(api());
  DeviceMemory arrays(api());
  arrays.grow(1 << 20, "a test");
  ASSERT_EQ(api().fill_async(arrays.data(), 0, 1 << 20, stream_->get()), 0);
  HitPathHost host(tables_, kGeometry, 4, 64, 0);
  const CudaExpert expert{arrays.data(), arrays.data(), arrays.data()};
  HitPathCall call{};
  call.hidden = 4;
  const auto route = [&](std::int32_t tokens) {
    call.tokens = tokens;
    call.top_k = tokens;
    call.x = call.routing = call.out = arrays.data();
    call.ids = arrays.as<std::int64_t>();
    CudaFfnCall experts{};
    experts.tokens = experts.top_k = experts.has_gate = 1;
    experts.experts = 8;
    experts.hidden = experts.inter = 4;
    experts.x = experts.routing = arrays.data();
    experts.out = arrays.data() + 2048;
    experts.ids = arrays.as<std::int64_t>();
    experts.table = arrays.data();
    experts.scratch = arrays.data() + 4096;
    experts.scratch_bytes = tables_.kernels->expert_ffn_scratch_bytes(&experts);
    host.begin_launch(false);
    host.launch(call, experts, stream_->get(), false);
    EXPECT_EQ(api().stream_synchronize(stream_->get()), 0);
  };
  EXPECT_TRUE(host.may_overwrite(0));  // nothing was ever there
  host.list(3, 0, expert);
  route(1);  // weight zero: nobody is asked for
  EXPECT_FALSE(host.idle()) << "its report was not read";
  EXPECT_FALSE(host.may_overwrite(0)) << "queued work may read it";
  EXPECT_FALSE(host.may_overwrite(0));
  route(1);
  EXPECT_TRUE(host.may_overwrite(0)) << "a later call has seen that it left";
  host.list(4, 0, expert);
  while (auto report = host.next()) host.consume(*report);
  EXPECT_TRUE(host.idle());
  EXPECT_TRUE(host.may_overwrite(0)) << "nothing is queued";
  host.list(5, 0, expert);
  route(1);
  HitReport standing{3, 0, 1, 1, 1, {}, {}, {}, nullptr};
  const std::int32_t asked = 5, found = 1;
  standing.ids = {&asked, 1};
  standing.found = {&found, 1};
  host.stand(standing);
  EXPECT_FALSE(host.may_overwrite(0)) << "the call that stands found it";
  host.answer(standing, false);
  const std::int32_t other = 6;
  standing.ids = {&other, 1};
  host.stand(standing);
  EXPECT_TRUE(host.may_overwrite(0)) << "the device stands, and does not need it";
  host.answer(standing, false);
}

}  // namespace
}  // namespace prophet
