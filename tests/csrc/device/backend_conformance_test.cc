#include "device/backend_conformance.h"

#include <thread>

namespace prophet::testing_device {

TEST_P(BackendConformance, MemoryAndFilesAreGivenOnce) {
  EXPECT_EQ(memory_.size(), kMemory);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(memory_.data()) % 4096, 0u);
  EXPECT_EQ(unit_ & (unit_ - 1), 0u);
  EXPECT_EQ(files_.size(), rig_->paths().size());
  EXPECT_THROW(backend().fast_memory(4096), StateError);
  EXPECT_THROW(backend().open(rig_->paths()), StateError);
  EXPECT_FALSE(backend().name().empty());
  EXPECT_FALSE(backend().description().empty());
}

TEST_P(BackendConformance, TicketZeroIsAlwaysDone) {
  const Ticket zero = 0;
  EXPECT_TRUE(backend().poll(zero));
  backend().wait(zero);
  backend().wait_any({&zero, 1});
  backend().wait_any({});
  backend().after(Lane::demand, zero);
  backend().after(Stream{0}, zero);
  const Ticket mark = backend().mark(0);  // of an idle stream: done as soon as the device says so
  backend().wait(mark);
  EXPECT_TRUE(backend().poll(mark));
}

TEST_P(BackendConformance, BringsAnyChunkAndNothingElse) {
  std::mt19937_64 random(7);
  constexpr std::uint64_t kMost = std::uint64_t{1} << 19;
  const std::byte untouched{0x5C};
  for (int round = 0; round < 12; ++round) {
    rig_->fill(memory_, untouched);
    std::vector<std::pair<Ticket, Extent>> copies;
    std::vector<std::byte*> at;
    std::byte* next = memory_.data();
    for (int i = 0; i < 8; ++i) {
      const Extent chunk = any_chunk(random, round % 2 == 0 ? kMost : 8192);
      next += unit_;  // a gap that must stay as it is
      at.push_back(next);
      copies.emplace_back(backend().copy(i % 3 == 0 ? Lane::prefetch : Lane::demand, next, chunk),
                          chunk);
      next += chunk.bytes;
    }
    for (std::size_t i = 0; i < copies.size(); ++i) {
      backend().wait(copies[i].first);
      EXPECT_TRUE(backend().poll(copies[i].first));
      ASSERT_NO_FATAL_FAILURE(expect_content(at[i], copies[i].second));
      EXPECT_TRUE(all_are(untouched, at[i] - unit_, unit_));
    }
    EXPECT_TRUE(all_are(untouched, next, std::size_t(memory_.data() + kMemory - next)));
  }
}

TEST_P(BackendConformance, AFailedReadThrowsAndItsNeighboursLand) {
  for (Lane lane : {Lane::demand, Lane::prefetch}) {
    const Extent chunk{0, 4 * unit_, unit_, 0};
    const Ticket before = backend().copy(lane, memory_.data(), chunk);
    const Ticket failing = rig_->copy_that_fails(lane, memory_.data() + unit_, {0, 0, unit_, 0});
    const Ticket behind = backend().copy(lane, memory_.data() + 2 * unit_, chunk);
    backend().wait(before);
    backend().wait(behind);
    backend().wait_any({&failing, 1});
    EXPECT_THROW(backend().poll(failing), ReadError);
    EXPECT_THROW(backend().poll(failing), ReadError);
    EXPECT_THROW(backend().wait(failing), ReadError);
    EXPECT_THROW(backend().after(Stream{0}, failing), ReadError);
    expect_content(memory_.data(), chunk);
    expect_content(memory_.data() + 2 * unit_, chunk);
  }
}

TEST_P(BackendConformance, AChunkThatTheFileDoesNotHoldFails) {
  const std::uint64_t end = (files_[1].size + unit_ - 1) / unit_ * unit_;
  for (const Extent& chunk : {Extent{1, end, unit_, 0}, Extent{1, end - unit_, 2 * unit_, 0},
                              Extent{1, 0, end + unit_, 0}, Extent{1, end * 1000, unit_, 0}}) {
    if (chunk.bytes > memory_.size()) continue;  // a virtual file as large as the disk
    const Ticket ticket = backend().copy(Lane::demand, memory_.data(), chunk);
    EXPECT_THROW(backend().wait(ticket), ReadError);
  }
}

TEST_P(BackendConformance, LaterCopiesOfALaneStartAfterATicket) {
  std::mt19937_64 random(11);
  for (int round = 0; round < 50; ++round) {
    // Both write the same place: only the order decides what is there in the end.
    const Lane other = round % 2 == 0 ? Lane::demand : Lane::prefetch;
    const Lane lane = round % 3 == 0 ? Lane::demand : Lane::prefetch;
    const Ticket first = backend().copy(other, memory_.data(), {0, 0, 64 * unit_, 0});
    const Ticket second = backend().copy(other, memory_.data() + 64 * unit_, {1, 0, unit_, 0});
    backend().after(lane, second);
    backend().after(lane, first);
    Extent chunk{1, random() % 4 * unit_, 16 * unit_, 0};
    const Ticket last = backend().copy(lane, memory_.data(), chunk);
    backend().wait(last);
    EXPECT_TRUE(backend().poll(first));
    EXPECT_TRUE(backend().poll(second));
    ASSERT_NO_FATAL_FAILURE(expect_content(memory_.data(), chunk));
  }
}

TEST_P(BackendConformance, ALaneGoesOnAfterATicketThatFailed) {
  const Ticket failing = rig_->copy_that_fails(Lane::prefetch, memory_.data(), {0, 0, unit_, 0});
  backend().after(Lane::demand, failing);
  const Ticket ticket = backend().copy(Lane::demand, memory_.data() + unit_, {1, 0, unit_, 0});
  backend().wait(ticket);
  EXPECT_THROW(backend().wait(failing), ReadError);
}

TEST_P(BackendConformance, StatsAddUp) {
  std::mt19937_64 random(3);
  const Nanos begin = backend().now();
  std::uint64_t bytes[kLanes] = {0, 0}, copies[kLanes] = {0, 0};
  std::vector<Ticket> tickets;
  for (int i = 0; i < 40; ++i) {
    const int lane = i % 4 == 0 ? 1 : 0;
    const Extent chunk = any_chunk(random, 1 << 16);
    tickets.push_back(
        backend().copy(static_cast<Lane>(lane), memory_.data() + i * (1 << 16), chunk));
    bytes[lane] += held(chunk);
    copies[lane] += 1;
  }
  for (Ticket each : tickets) backend().wait(each);
  const Ticket failing = rig_->copy_that_fails(Lane::demand, memory_.data(), {0, 0, unit_, 0});
  EXPECT_THROW(backend().wait(failing), ReadError);
  const Nanos end = backend().now();
  EXPECT_GE(end, begin);
  Nanos sum = 0;
  for (Lane lane : {Lane::demand, Lane::prefetch}) {
    const LaneStats stats = backend().stats(lane);
    EXPECT_EQ(stats.bytes, bytes[static_cast<int>(lane)]);
    EXPECT_EQ(stats.copies, copies[static_cast<int>(lane)]);
    EXPECT_GT(stats.busy, 0);
    EXPECT_LE(stats.busy, end - begin);
    EXPECT_LE(stats.busy, backend().busy());
    sum += stats.busy;
  }
  EXPECT_LE(backend().busy(), sum);
}

TEST_P(BackendConformance, RefusesCopiesThatCannotBe) {
  const auto refused = [&](std::byte* to, const Extent& chunk) {
    EXPECT_THROW(backend().copy(Lane::demand, to, chunk), InvalidArgument);
  };
  refused(memory_.data(), {-1, 0, unit_, 0});
  refused(memory_.data(), {static_cast<std::int32_t>(files_.size()), 0, unit_, 0});
  refused(memory_.data(), {0, 0, 0, 0});
  refused(memory_.data() + kMemory, {0, 0, unit_, 0});
  refused(memory_.data() + kMemory - unit_, {0, 0, 2 * unit_, 0});
  refused(memory_.data() - unit_, {0, 0, unit_, 0});
  refused(memory_.data(), {0, 0, ~std::uint64_t{0} / unit_ * unit_, 0});
  if (unit_ > 1) {
    refused(memory_.data() + 1, {0, 0, unit_, 0});
    refused(memory_.data(), {0, 1, unit_, 0});
    refused(memory_.data(), {0, 0, unit_ + 1, 0});
  }
  EXPECT_THROW(backend().poll(Ticket{1} << 60), InvalidArgument);
  EXPECT_THROW(backend().wait(Ticket{1} << 60), InvalidArgument);
}

TEST_P(BackendConformance, ServesManyThreads) {
  constexpr int kThreads = 4;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([this, t] {
      std::mt19937_64 random(100 + t);
      std::byte* own = memory_.data() + t * (kMemory / kThreads);
      for (int i = 0; i < 20; ++i) {
        Extent chunks[3];
        Ticket tickets[3];
        for (int c = 0; c < 3; ++c) {
          chunks[c] = any_chunk(random, 1 << 16);
          tickets[c] =
              backend().copy(c == 2 ? Lane::prefetch : Lane::demand, own + (c << 16), chunks[c]);
        }
        backend().wait_any(tickets);
        EXPECT_TRUE(std::any_of(tickets, tickets + 3, [&](Ticket x) { return backend().poll(x); }));
        for (int c = 0; c < 3; ++c) {
          backend().wait(tickets[c]);
          ASSERT_NO_FATAL_FAILURE(expect_content(own + (c << 16), chunks[c]));
        }
        EXPECT_GE(backend().busy(), 0);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(BackendConformance, MayBeDestroyedWithCopiesUnderWay) {
  for (int i = 0; i < 64; ++i) {
    backend().copy(i % 2 == 0 ? Lane::demand : Lane::prefetch, memory_.data() + i * 32 * unit_,
                   {0, 0, 32 * unit_, 0});
  }
  backend().after(Lane::demand, backend().copy(Lane::prefetch, memory_.data(), {0, 0, unit_, 0}));
  rig_->destroy();
}

}  // namespace prophet::testing_device
