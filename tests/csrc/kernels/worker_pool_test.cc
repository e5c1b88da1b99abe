#include "kernels/worker_pool.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "core/error.h"

namespace prophet {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// Plain ints: under ThreadSanitizer this also shows that run() orders bodies before its return.
void expect_each_once(WorkerPool& pool, int count) {
  std::vector<int> calls(static_cast<std::size_t>(count), 0);
  pool.run(count, [&](int i) { ++calls[static_cast<std::size_t>(i)]; });
  for (int i = 0; i < count; ++i) {
    ASSERT_EQ(calls[static_cast<std::size_t>(i)], 1) << i << " of " << count;
  }
}

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

TEST(WorkerPool, CallsEachIndexOnce) {
  for (int threads : {1, 2, 3, 8}) {
    WorkerPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (int count : {0, 1, 2, 3, 7, 64, 1000}) expect_each_once(pool, count);
  }
}

TEST(WorkerPool, NegativeCountIsNoWork) {
  WorkerPool pool(2);
  pool.run(-3, [](int) { FAIL(); });
}

TEST(WorkerPool, RefusesNoThreads) {
  EXPECT_THROW(WorkerPool(0), InvalidArgument);
  EXPECT_THROW(WorkerPool(-1), InvalidArgument);
}

// Four bodies that wait for each other end only if four threads run them.
TEST(WorkerPool, ThreadsWorkAtTheSameTime) {
  WorkerPool pool(4);
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> arrived{0};
    std::atomic<int> met{0};
    const auto deadline = steady_clock::now() + std::chrono::seconds(20);
    pool.run(4, [&](int) {
      ++arrived;
      while (arrived < 4 && steady_clock::now() < deadline) std::this_thread::yield();
      if (arrived == 4) ++met;
    });
    ASSERT_EQ(met, 4) << "round " << round;
  }
}

// Runs back to back meet spinning workers and late ones that still look at the previous run.
TEST(WorkerPool, ManyShortRuns) {
  for (int threads : {2, 7}) {
    WorkerPool pool(threads);
    std::vector<int> values(16);
    for (int round = 0; round < 3000; ++round) {
      const int count = 2 + round % 15;
      pool.run(count, [&](int i) { values[static_cast<std::size_t>(i)] = round + i; });
      for (int i = 0; i < count; ++i) ASSERT_EQ(values[static_cast<std::size_t>(i)], round + i);
    }
  }
}

// Pauses around the length of the spin: workers are found spinning, falling asleep and asleep. A
// lost wake-up would leave the work to the caller, so the bodies demand company.
TEST(WorkerPool, NoWakeUpIsLost) {
  WorkerPool pool(3);
  for (int round = 0; round < 300; ++round) {
    const auto until = steady_clock::now() + std::chrono::microseconds(round % 150);
    while (steady_clock::now() < until) std::this_thread::yield();
    std::atomic<int> arrived{0};
    const auto deadline = steady_clock::now() + std::chrono::seconds(20);
    pool.run(3, [&](int) {
      ++arrived;
      while (arrived < 3 && steady_clock::now() < deadline) std::this_thread::yield();
    });
    ASSERT_LT(steady_clock::now(), deadline) << "a worker slept through round " << round;
  }
}

TEST(WorkerPool, OneSlowBodyIsAwaited) {
  WorkerPool pool(4);
  for (int slow : {0, 5, 9}) {
    std::vector<int> done(10, 0);
    pool.run(10, [&](int i) {
      if (i == slow) std::this_thread::sleep_for(milliseconds(5));  // longer than anyone spins
      done[static_cast<std::size_t>(i)] = 1;
    });
    EXPECT_EQ(std::accumulate(done.begin(), done.end(), 0), 10);
  }
}

TEST(WorkerPool, FarMoreThreadsThanProcessors) {
  WorkerPool pool(40);
  for (int round = 0; round < 50; ++round) expect_each_once(pool, 200);
}

TEST(WorkerPool, EndsRightAfterARun) {
  for (int round = 0; round < 200; ++round) {
    WorkerPool pool(3);
    if (round % 2 == 0) expect_each_once(pool, 5);
  }
}

TEST(WorkerPool, PoolsDoNotDisturbEachOther) {
  std::vector<std::unique_ptr<WorkerPool>> pools;
  for (int i = 0; i < 4; ++i) pools.push_back(std::make_unique<WorkerPool>(3));
  std::vector<std::thread> callers;
  for (auto& pool : pools) {
    callers.emplace_back([&pool] {
      for (int round = 0; round < 100; ++round) expect_each_once(*pool, 20);
    });
  }
  for (std::thread& caller : callers) caller.join();
}

TEST(WorkerPool, CallersMayChangeBetweenRuns) {
  WorkerPool pool(3);
  for (int i = 0; i < 5; ++i) std::thread([&pool] { expect_each_once(pool, 50); }).join();
}

// The promise of the header: nothing burns a core between layers.
// Of the pools here the smaller spins before it sleeps, the larger has too many threads to.
TEST(WorkerPool, IdleMeansIdle) {
  const int processors = static_cast<int>(std::thread::hardware_concurrency());
  for (int threads : {std::max(2, processors), 4 * processors + 1}) {
    WorkerPool pool(threads);
    expect_each_once(pool, 100);
    std::this_thread::sleep_for(milliseconds(20));  // past the spin, however slow the machine
    const double before = cpu_seconds();
    std::this_thread::sleep_for(milliseconds(300));  // the period that is measured
    EXPECT_LT(cpu_seconds() - before, 0.015) << "of 0.3 s, " << threads << " threads";
  }
}

}  // namespace
}  // namespace prophet
