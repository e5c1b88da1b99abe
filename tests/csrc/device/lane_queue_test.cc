// Which read starts next, without threads or files: the rules that all lanes share.
#include "device/cpu/lane_queue.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "core/error.h"

namespace prophet {
namespace {

Ticket push(LaneQueue& queue, Lane lane) { return queue.push(lane, nullptr, {0, 0, 1, 0}); }

void land(LaneQueue& queue, FileRead read) {
  read.size = read.from.bytes;
  queue.finish(read);
}

TEST(LaneQueue, DemandOvertakesEveryPrefetchThatWaits) {
  LaneQueue queue(1);
  std::vector<Ticket> prefetches, demands;
  for (int i = 0; i < 3; ++i) prefetches.push_back(push(queue, Lane::prefetch));
  auto running = queue.next();
  ASSERT_TRUE(running);
  EXPECT_EQ(running->ticket, prefetches[0]);
  for (int i = 0; i < 3; ++i) demands.push_back(push(queue, Lane::demand));
  EXPECT_FALSE(queue.next());  // depth
  std::vector<Ticket> order;
  while (running) {
    order.push_back(running->ticket);
    land(queue, *running);
    running = queue.next();
  }
  EXPECT_EQ(order, (std::vector<Ticket>{prefetches[0], demands[0], demands[1], demands[2],
                                        prefetches[1], prefetches[2]}));
}

TEST(LaneQueue, AtMostDepthInFlightAndFewOfThemPrefetches) {
  for (int depth : {1, 2, 3, 8}) {
    LaneQueue queue(depth);
    for (int i = 0; i < 20; ++i) push(queue, Lane::prefetch);
    std::vector<FileRead> running;
    while (auto read = queue.next()) running.push_back(*read);
    EXPECT_EQ(int(running.size()), std::min(depth, LaneQueue::kPrefetchInFlight));
    for (int i = 0; i < 20; ++i) push(queue, Lane::demand);
    while (auto read = queue.next()) running.push_back(*read);
    EXPECT_EQ(int(running.size()), depth);
    for (const FileRead& read : running) land(queue, read);
  }
}

// Reads in flight share the disk: speculation begins only on one that no demand uses.
TEST(LaneQueue, APrefetchStartsOnlyWhenNoDemandIsInFlight) {
  for (std::uint64_t seed = 1; seed <= 50; ++seed) {
    std::mt19937_64 random(seed);
    LaneQueue queue(1 + int(random() % 6));
    std::vector<FileRead> running;
    const auto demands = [&] {
      return std::ranges::count(running, Lane::demand, [](const FileRead& r) { return r.lane; });
    };
    int waiting_demands = 0, prefetches = 0;
    for (int step = 0; step < 400; ++step) {
      if (random() % 3 == 0) {
        const Lane lane = random() % 3 == 0 ? Lane::demand : Lane::prefetch;
        push(queue, lane);
        waiting_demands += lane == Lane::demand;
      } else if (random() % 2 == 0) {
        const auto read = queue.next();
        if (!read) continue;
        if (read->lane == Lane::prefetch) {
          ASSERT_EQ(demands(), 0) << "seed " << seed;
          ASSERT_EQ(waiting_demands, 0) << "seed " << seed;
          ++prefetches;
        } else {
          --waiting_demands;
        }
        running.push_back(*read);
      } else if (!running.empty()) {
        const std::size_t i = random() % running.size();
        land(queue, running[i]);
        running.erase(running.begin() + std::ptrdiff_t(i));
      }
    }
    EXPECT_GT(prefetches, 0) << "seed " << seed;
  }
}

// Any order of pushes, gates and endings: no copy starts before what its lane was told to wait for,
// each lane starts in order, and all of them start in the end.
TEST(LaneQueue, GatesHoldUnderAnyInterleaving) {
  for (std::uint64_t seed = 1; seed <= 50; ++seed) {
    std::mt19937_64 random(seed);
    LaneQueue queue(4);
    struct Copy {
      Lane lane;
      std::vector<Ticket> behind;
    };
    std::vector<Copy> copies(1);      // by ticket
    std::vector<char> settled(1, 1);  // by ticket
    std::vector<Ticket> gates[kLanes];
    std::vector<FileRead> running;
    Ticket last_started[kLanes] = {0, 0};
    std::size_t ended = 0;
    const auto step = [&] {
      if (random() % 2 == 0) {
        const auto read = queue.next();
        if (!read) return;
        const auto lane = static_cast<std::size_t>(read->lane);
        EXPECT_GT(read->ticket, last_started[lane]);
        last_started[lane] = read->ticket;
        for (Ticket gate : copies[read->ticket].behind) EXPECT_TRUE(settled[gate]);
        running.push_back(*read);
      } else if (!running.empty()) {
        const std::size_t i = random() % running.size();
        FileRead read = running[i];
        running.erase(running.begin() + std::ptrdiff_t(i));
        settled[read.ticket] = 1;
        ++ended;
        if (random() % 4 == 0) read.why = "it failed";
        land(queue, read);
      }
    };
    for (int i = 0; i < 100; ++i) {
      const Lane lane = random() % 2 == 0 ? Lane::demand : Lane::prefetch;
      auto& gate = gates[static_cast<std::size_t>(lane)];
      if (random() % 3 == 0) {
        gate.push_back(random() % copies.size());
        queue.after(lane, gate.back());
      }
      ASSERT_EQ(push(queue, lane), copies.size());
      copies.push_back({lane, gate});
      settled.push_back(0);
      step();
    }
    for (int i = 0; i < 10000 && ended + 1 < copies.size(); ++i) step();
    EXPECT_EQ(ended + 1, copies.size()) << "seed " << seed;
  }
}

TEST(LaneQueue, AfterABreakdownEverythingFailsAtOnce) {
  LaneQueue queue(2);
  const Ticket waiting = push(queue, Lane::demand);
  queue.after(Lane::demand, waiting);
  const Ticket behind = push(queue, Lane::demand);
  queue.break_down("the ring is gone");
  const Ticket later = push(queue, Lane::prefetch);
  for (Ticket each : {waiting, behind, later}) EXPECT_THROW(queue.wait(each), ReadError);
  EXPECT_FALSE(queue.next());
}

TEST(LaneQueue, StopSendsTheLanesHome) {
  LaneQueue queue(2);
  push(queue, Lane::demand);
  queue.stop();
  EXPECT_TRUE(queue.stopped());
  EXPECT_FALSE(queue.next_or_wait());
}

TEST(LaneQueue, APromotedPrefetchGoesBehindTheDemandsThatWait) {
  LaneQueue queue(1);
  const Ticket running = push(queue, Lane::demand), demand = push(queue, Lane::demand);
  const Ticket first = push(queue, Lane::prefetch);
  queue.after(Lane::prefetch, demand);
  const Ticket second = push(queue, Lane::prefetch);
  queue.promote(second);  // also past what its lane waits for
  queue.promote(running);
  queue.promote(Ticket{12345});
  std::vector<std::pair<Ticket, Lane>> order;
  while (auto read = queue.next()) {
    order.emplace_back(read->ticket, read->lane);
    land(queue, *read);
  }
  EXPECT_EQ(order, (std::vector<std::pair<Ticket, Lane>>{{running, Lane::demand},
                                                         {demand, Lane::demand},
                                                         {second, Lane::demand},
                                                         {first, Lane::prefetch}}));
}

TEST(LaneQueue, TheBellRingsOncePerReadThatEndedAndMayAskForMore) {
  std::vector<std::pair<Ticket, bool>> rung;
  LaneQueue* known = nullptr;
  LaneQueue queue(4, [&](const FileRead& read) {
    rung.emplace_back(read.ticket, read.why.empty());
    if (rung.size() == 1) push(*known, Lane::demand);  // no lock is held
  });
  known = &queue;
  const Ticket good = push(queue, Lane::demand), bad = push(queue, Lane::demand);
  FileRead one = *queue.next(), two = *queue.next();
  two.why = "it fails";
  land(queue, one);
  queue.finish(two);
  const Ticket waiting = push(queue, Lane::prefetch);
  queue.break_down("nothing goes on");
  EXPECT_EQ(rung, (std::vector<std::pair<Ticket, bool>>{
                      {good, true}, {bad, false}, {waiting - 1, false}, {waiting, false}}));
}

}  // namespace
}  // namespace prophet
