#include "device/cuda/cuda_backend.h"

#include <gmock/gmock.h>

#include <cstring>
#include <set>

#include "device/cuda_rig.h"

namespace prophet::testing_device {
namespace {

using testing::AnyOf;
using testing::HasSubstr;

RigMaker rig(const std::string& name, const CudaOptions& options, std::uint64_t seed) {
  return {name, [=] { return std::make_unique<CudaRig>(options, seed); }};
}

INSTANTIATE_TEST_SUITE_P(Cuda, BackendConformance,
                         testing::Values(rig("tight", small_pool(), 1),
                                         rig("uring", small_pool(IoKind::auto_), 2),
                                         rig("roomy", small_pool(IoKind::auto_, 256), 3)),
                         RigMaker::name_of);

// A backend with its files open and its memory taken.
struct Bench {
  explicit Bench(const CudaOptions& options = small_pool(), std::uint64_t seed = 1)
      : rig(options, seed), backend(rig.backend()), model(rig.model()) {
    files = backend.open(rig.paths());
    unit = backend.alignment();
    memory = backend.fast_memory(std::size_t{4} << 20);
  }
  Extent block(std::uint64_t number) const { return {0, number * kBlock, kBlock, 0}; }
  Ticket demand(std::uint64_t number, std::size_t slot = 0) {
    return backend.copy(Lane::demand, memory.data() + slot * kBlock, block(number));
  }
  Ticket early(std::uint64_t number, std::size_t slot = 0) {
    return backend.copy(Lane::prefetch, memory.data() + slot * kBlock, block(number));
  }
  void stage(std::uint64_t number) { backend.wait(backend.stage(block(number))); }
  std::uint64_t read_bytes() const {
    const StagingStats stats = backend.staging();
    return stats.read[0].bytes + stats.read[1].bytes;
  }
  bool holds(std::uint64_t number, std::size_t slot = 0) const {
    const std::byte* at = memory.data() + slot * kBlock;
    for (std::uint64_t i = 0; i < kBlock; ++i) {
      if (at[i] != ManualBackend::byte_at(0, number * kBlock + i)) return false;
    }
    return true;
  }
  std::string error_of(Ticket ticket) {
    try {
      backend.wait(ticket);
    } catch (const DeviceError& error) {
      return error.what();
    }
    return {};
  }

  CudaRig rig;
  Backend& backend;
  CudaModel& model;
  std::vector<FileInfo> files;
  std::uint64_t unit = 1;
  std::span<std::byte> memory;
};

TEST(CudaBackend, SaysWhatItIs) {
  Bench bench;
  EXPECT_EQ(bench.backend.name(), "cuda");
  EXPECT_FALSE(bench.backend.host_visible());
  EXPECT_TRUE(bench.backend.has_staging());
  EXPECT_EQ(bench.backend.failure(), "");
  EXPECT_THAT(bench.backend.description(), HasSubstr("Model (emulated), host pool of 1 MiB"));
  const StagingStats stats = bench.backend.staging();
  EXPECT_EQ(stats.capacity, kLeastBlocks * kBlock);
  EXPECT_EQ(stats.held, 0u);
}

TEST(CudaBackend, WhatThePoolHoldsCostsTheLinkAlone) {
  Bench bench;
  bench.backend.wait(bench.demand(3));
  EXPECT_EQ(bench.read_bytes(), kBlock);
  EXPECT_EQ(bench.backend.staging().found_bytes, 0u);
  bench.backend.wait(bench.demand(3, 1));
  EXPECT_TRUE(bench.holds(3, 1));
  EXPECT_EQ(bench.read_bytes(), kBlock);
  EXPECT_EQ(bench.backend.staging().found_bytes, kBlock);
  EXPECT_EQ(bench.backend.stats(Lane::demand).bytes, 2 * kBlock);
}

TEST(CudaBackend, StagingEndsInThePool) {
  Bench bench;
  std::memset(bench.memory.data(), 0x5C, bench.memory.size());
  bench.stage(2);
  EXPECT_EQ(bench.backend.staging().held, kBlock);
  EXPECT_EQ(bench.backend.staging().read[1].bytes, kBlock);
  EXPECT_EQ(bench.backend.stats(Lane::prefetch).copies, 0u);
  EXPECT_EQ(bench.backend.busy(), 0);
  EXPECT_EQ(bench.model.calls("copy_async"), 0);
  EXPECT_TRUE(std::all_of(bench.memory.begin(), bench.memory.end(),
                          [](std::byte each) { return each == std::byte{0x5C}; }));
  bench.stage(2);  // it is there
  EXPECT_EQ(bench.read_bytes(), kBlock);
  bench.backend.wait(bench.demand(2));
  EXPECT_TRUE(bench.holds(2));
  EXPECT_EQ(bench.read_bytes(), kBlock);
}

TEST(CudaBackend, TheBlockUsedLongestAgoMakesRoom) {
  Bench bench;
  for (std::uint64_t i = 0; i < kLeastBlocks; ++i) bench.stage(i);
  bench.stage(0);  // used again
  bench.stage(kLeastBlocks);
  EXPECT_EQ(bench.backend.staging().dropped_bytes, kBlock);
  const std::uint64_t before = bench.read_bytes();
  bench.stage(0);
  EXPECT_EQ(bench.read_bytes(), before);
  bench.stage(1);
  EXPECT_EQ(bench.read_bytes(), before + kBlock);
}

TEST(CudaBackend, AReadUnderWayServesWhoeverAsksForIt) {
  Bench bench;
  const Ticket first = bench.early(5), second = bench.demand(5, 1);
  const Ticket staged = bench.backend.stage(bench.block(5));
  for (Ticket each : {first, second, staged}) bench.backend.wait(each);
  EXPECT_TRUE(bench.holds(5, 0));
  EXPECT_TRUE(bench.holds(5, 1));
  EXPECT_EQ(bench.read_bytes(), kBlock);
}

TEST(CudaBackend, ALongCopyCrossesTheLinkInBlocks) {
  Bench bench;
  bench.backend.wait(bench.backend.copy(Lane::demand, bench.memory.data(), {0, 0, 20 * kBlock, 0}));
  for (std::uint64_t i = 0; i < 20; ++i) EXPECT_TRUE(bench.holds(i, i));
  EXPECT_EQ(bench.model.calls("copy_async"), 20);
  EXPECT_EQ(bench.backend.stats(Lane::demand).copies, 1u);
  EXPECT_EQ(bench.backend.stats(Lane::demand).bytes, 20 * kBlock);
}

TEST(CudaBackend, ADemandFindsOneBlockOfPrefetchesOnTheLink) {
  Bench bench;
  for (std::uint64_t i = 0; i < 12; ++i) bench.stage(i);
  bench.model.hold();
  std::vector<Ticket> tickets;
  for (std::uint64_t i = 0; i < 8; ++i) tickets.push_back(bench.early(i, i));
  EXPECT_EQ(bench.model.copies_queued(), 2u);  // halves
  tickets.push_back(bench.demand(9, 9));
  EXPECT_EQ(bench.model.copies_queued(), 3u);
  tickets.push_back(bench.demand(10, 10));
  EXPECT_EQ(bench.model.copies_queued(), 4u);
  bench.model.release();
  bench.backend.wait(tickets.back());
  for (Ticket each : tickets) bench.backend.wait(each);
  EXPECT_TRUE(bench.holds(7, 7));
}

TEST(CudaBackend, DemandsGetBlocksWhilePrefetchesWaitForTheLink) {
  Bench bench;
  bench.model.hold();
  std::vector<Ticket> tickets;
  for (std::uint64_t i = 0; i < 30; ++i) tickets.push_back(bench.early(i, i));
  const Ticket demand =
      bench.backend.copy(Lane::demand, bench.memory.data() + 32 * kBlock, {1, 0, 8 * kBlock, 0});
  // All of its blocks are read although nothing leaves over the link.
  while (bench.backend.staging().read[0].bytes < 8 * kBlock) std::this_thread::yield();
  bench.model.release();
  bench.backend.wait(demand);
  for (Ticket each : tickets) bench.backend.wait(each);
}

// What waits for a prefetch must not keep it from the pool.
TEST(CudaBackend, ManyDemandsAfterAPrefetchThatHasNotStartedEnd) {
  Bench bench;
  bench.model.hold();
  std::vector<Ticket> tickets;
  for (std::uint64_t i = 0; i < 10; ++i) tickets.push_back(bench.early(i, i));
  bench.backend.after(Lane::demand, tickets.back());
  tickets.push_back(bench.backend.copy(Lane::demand, bench.memory.data() + 20 * kBlock,
                                       {0, 0, 2 * kLeastBlocks * kBlock, 0}));
  bench.model.release();
  for (Ticket each : tickets) bench.backend.wait(each);
  EXPECT_TRUE(bench.holds(9, 9));
  EXPECT_TRUE(bench.holds(31, 51));
}

TEST(CudaBackend, MemoryThatWasHandedOverIsUsedAndNotFreed) {
  CudaModel model;
  void* torch = nullptr;
  ASSERT_EQ(model.api()->allocate(1 << 20, &torch), 0);
  const std::size_t before = model.alive();
  {
    CudaOptions options = small_pool();
    options.api = model.api();
    options.memory = torch;
    options.memory_bytes = 1 << 20;
    const auto backend = make_cuda_backend(options);
    EXPECT_THROW(backend->fast_memory(1 << 20), InvalidArgument);  // it does not begin on a page
    const auto memory = backend->fast_memory((1 << 20) - 4096);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory.data()) % 4096, 0u);
    EXPECT_GE(memory.data(), torch);
    EXPECT_LE(memory.data() + memory.size(), static_cast<std::byte*>(torch) + (1 << 20));
  }
  EXPECT_EQ(model.alive(), before);
  EXPECT_EQ(model.calls("release"), 0);
  model.api()->release(torch);
}

TEST(CudaBackend, RefusesMemoryOfAnotherDeviceOrOfNone) {
  CudaModel model;
  const CudaApi& api = *model.api();
  void* theirs = nullptr;
  std::thread([&] {
    api.use_device(1);
    api.allocate(1 << 20, &theirs);
  }).join();
  const auto refused = [&](void* memory) -> std::string {
    CudaOptions options = small_pool();
    options.api = &api;
    options.memory = memory;
    options.memory_bytes = 1 << 20;
    try {
      make_cuda_backend(options);
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(refused(theirs), HasSubstr("memory of CUDA device 1"));
  int local = 0;
  EXPECT_THAT(refused(&local), HasSubstr("is not device memory"));
  api.release(theirs);
}

TEST(CudaBackend, TheCallersDeviceStaysWhatItIs) {
  CudaModel model;
  model.api()->use_device(1);
  CudaOptions options = small_pool();
  options.api = model.api();
  const auto backend = make_cuda_backend(options);
  backend->fast_memory(1 << 20);
  EXPECT_EQ(model.device_of_last_creation(), 0);
  void* mine = nullptr;
  model.api()->allocate(4096, &mine);
  EXPECT_EQ(model.device_of_last_creation(), 1);
  model.api()->release(mine);
  model.api()->use_device(0);
}

TEST(CudaBackend, RefusesNumbersThatCannotBe) {
  CudaModel model;
  const auto refused = [&](auto change) {
    CudaOptions options = small_pool();
    options.api = model.api();
    change(options);
    EXPECT_THROW(make_cuda_backend(options), InvalidArgument);
  };
  refused([](CudaOptions& o) { o.api = nullptr; });
  refused([](CudaOptions& o) { o.block_bytes = 0; });
  refused([](CudaOptions& o) { o.block_bytes = 1000; });
  refused([](CudaOptions& o) { o.pool_bytes = 15 * kBlock; });
  refused([](CudaOptions& o) { o.piece_bytes = kBlock - 1; });
  refused([](CudaOptions& o) { o.disk.depth = 0; });
  EXPECT_EQ(model.alive(), 0u);
}

TEST(CudaBackend, TwoShareADevice) {
  Bench bench;
  CudaOptions options = small_pool();
  options.api = bench.model.api();
  auto other = make_cuda_backend(options);
  other->open(bench.rig.paths());
  const auto memory = other->fast_memory(1 << 20);
  const Extent chunk{0, 0, 8 * kBlock, 0};
  const Ticket here = bench.backend.copy(Lane::demand, bench.memory.data(), chunk);
  const Ticket there = other->copy(Lane::demand, memory.data(), chunk);
  bench.backend.wait(here);
  other->wait(there);
  EXPECT_EQ(std::memcmp(bench.memory.data(), memory.data(), chunk.bytes), 0);
  other.reset();
  bench.backend.wait(bench.demand(9));
  EXPECT_TRUE(bench.holds(9));
}

TEST(CudaBackend, MarksThatNobodyAsksForCostNoEvents) {
  Bench bench;
  void* compute = bench.model.make_stream();
  const int before = bench.model.calls("event_create");
  for (int i = 0; i < 1000; ++i) {
    bench.model.launch(compute, {}, [] {});
    const Ticket mark = bench.backend.mark(reinterpret_cast<Stream>(compute));
    if (i % 50 == 49) bench.backend.wait(mark);
  }
  EXPECT_EQ(bench.model.calls("event_create"), before);
  bench.model.api()->stream_destroy(compute);
}

}  // namespace
}  // namespace prophet::testing_device
