// The pool of host memory against a list that is searched from end to end.
#include "device/cuda/host_pool.h"

#include <gtest/gtest.h>

#include <list>
#include <random>
#include <set>

#include "core/error.h"
#include "device/cuda_model.h"

namespace prophet::testing_device {
namespace {

constexpr std::uint64_t kSize = 4096, kBlocks = 8;

HostPoolOptions blocks(std::uint64_t count) { return {count * kSize, 3 * kSize, kSize}; }

Extent run(std::uint64_t number, std::uint64_t bytes = kSize) {
  return {0, number * kSize, bytes, 0};
}

HostPool::Block& filled(HostPool& pool, std::uint64_t number) {
  HostPool::Block* block = pool.take(run(number));
  EXPECT_NE(block, nullptr);
  pool.filled(*block, kSize);
  return *block;
}

TEST(HostPool, BlocksAreApartAndOnPages) {
  CudaModel model;
  HostPool pool(*model.api(), blocks(kBlocks));
  std::set<std::byte*> seen;
  for (std::uint64_t i = 0; i < kBlocks; ++i) {
    std::byte* memory = pool.take(run(i))->memory;
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory) % 4096, 0u);
    std::memset(memory, int(i), kSize);
    seen.insert(memory);
  }
  EXPECT_EQ(seen.size(), kBlocks);
  EXPECT_EQ(pool.take(run(99)), nullptr);  // all are being filled
  for (std::uint64_t i = 0; i < kBlocks; ++i) {
    EXPECT_EQ(pool.find(run(i))->memory[kSize - 1], std::byte(i));
  }
  EXPECT_EQ(pool.held(), 0u);
}

TEST(HostPool, WhatIsInUseOrBeingFilledStays) {
  CudaModel model;
  HostPool pool(*model.api(), blocks(2));
  HostPool::Block& used = filled(pool, 0);
  pool.use(used);
  pool.take(run(1));
  EXPECT_EQ(pool.take(run(2)), nullptr);
  pool.unuse(used);
  EXPECT_EQ(pool.take(run(2)), &used);
  EXPECT_EQ(pool.find(run(0)), nullptr);
  EXPECT_EQ(pool.dropped(), kSize);
}

TEST(HostPool, AnotherLengthFromTheSamePlaceIsAnotherRun) {
  CudaModel model;
  HostPool pool(*model.api(), blocks(4));
  HostPool::Block& whole = filled(pool, 0);
  EXPECT_EQ(pool.find(run(0, 512)), nullptr);
  pool.use(whole);
  EXPECT_EQ(pool.take(run(0, 512)), nullptr);  // when the longer one is free again
  pool.unuse(whole);
  HostPool::Block* part = pool.take(run(0, 512));
  ASSERT_NE(part, nullptr);
  EXPECT_EQ(pool.find(run(0)), nullptr);
  EXPECT_EQ(pool.find(run(0, 512)), part);
}

TEST(HostPool, WhatCouldNotBeFilledLeavesNoTrace) {
  CudaModel model;
  HostPool pool(*model.api(), blocks(2));
  pool.drop(*pool.take(run(0)));
  EXPECT_EQ(pool.find(run(0)), nullptr);
  EXPECT_EQ(pool.dropped(), 0u);
  EXPECT_NE(pool.take(run(1)), nullptr);
  EXPECT_NE(pool.take(run(2)), nullptr);
}

TEST(HostPool, TheOneUsedLongestAgoLeavesAsInAList) {
  CudaModel model;
  HostPool pool(*model.api(), blocks(kBlocks));
  std::list<std::uint64_t> order;  // used last at the end
  std::mt19937 random(5);
  for (int i = 0; i < 3000; ++i) {
    const std::uint64_t number = random() % 14;
    const auto known = std::find(order.begin(), order.end(), number);
    HostPool::Block* block = pool.find(run(number));
    ASSERT_EQ(block != nullptr, known != order.end());
    if (block == nullptr) {
      block = &filled(pool, number);
      if (order.size() == kBlocks) order.pop_front();
    } else {
      order.erase(known);
    }
    order.push_back(number);
    pool.use(*block);
    pool.unuse(*block);
    ASSERT_EQ(pool.held(), order.size() * kSize);
  }
}

TEST(HostPool, WhatIsTouchedLeavesLater) {
  CudaModel model;
  HostPool pool(*model.api(), blocks(2));
  HostPool::Block& first = filled(pool, 0);
  filled(pool, 1);
  pool.touch(first);
  filled(pool, 2);
  EXPECT_EQ(pool.find(run(0)), &first);
  EXPECT_EQ(pool.find(run(1)), nullptr);
}

TEST(HostPool, GivesEverythingBackHoweverItWasHad) {
  CudaModel model;
  model.limit_pinned(4 * kSize);
  {
    HostPool pool(*model.api(), blocks(kBlocks));
    EXPECT_EQ(pool.capacity(), 4 * kSize);  // a piece of three, and one block
    EXPECT_NE(pool.note(), "");
    EXPECT_THROW(HostPool(*model.api(), blocks(kBlocks)), DeviceError) << "nothing is left";
  }
  EXPECT_EQ(model.alive(), 0u);
  EXPECT_THROW(HostPool(*model.api(), blocks(kBlocks), 5), DeviceError) << "less than the least";
  EXPECT_EQ(model.alive(), 0u);
}

}  // namespace
}  // namespace prophet::testing_device
