#include "kernels/worker_pool.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"

namespace prophet {
namespace {

constexpr std::chrono::microseconds kSpin{50};

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// True as soon as `ready()` is; false when the patience for spinning is spent.
template <class Ready>
bool spin_until(bool may_spin, Ready ready) {
  if (ready()) return true;
  if (!may_spin) return false;
  const auto deadline = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < deadline);
  return false;
}

}  // namespace

// A run is published by storing its count in `unclaimed`. Taking one away claims an index, and a
// run cannot end before its claimed bodies have returned; so whoever claims may read `body` and
// `count`, and a worker that wakes late can never touch a run that is over.
//
// Sleeping: a sleeper announces itself in `sleepers` (or `caller_sleeps`) before it looks at the
// state a last time, and a waker changes the state before it looks for sleepers. All four accesses
// are sequentially consistent, so one of the two always sees the other.
struct WorkerPool::Impl {
  alignas(64) std::atomic<int> unclaimed{0};
  alignas(64) std::atomic<int> unfinished{0};
  alignas(64) std::atomic<int> sleepers{0};
  std::atomic<bool> caller_sleeps{false};
  std::atomic<bool> stop{false};
  const std::function<void(int)>* body = nullptr;
  int count = 0;
  bool may_spin = true;

  std::mutex mutex;
  std::condition_variable work_came;
  std::condition_variable work_done;
  std::vector<std::thread> workers;

  void work_until_claimed() {
    int left = unclaimed.load(std::memory_order_acquire);
    while (left > 0) {
      if (!unclaimed.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel,
                                           std::memory_order_acquire)) {
        continue;
      }
      (*body)(count - left);
      if (unfinished.fetch_sub(1) == 1 && caller_sleeps.load()) {
        { std::lock_guard lock(mutex); }
        work_done.notify_one();
      }
      left = unclaimed.load(std::memory_order_acquire);
    }
  }

  bool awaited() const { return unclaimed.load() > 0 || stop.load(); }

  void serve() {
    while (!stop.load()) {
      work_until_claimed();
      if (spin_until(may_spin, [this] { return awaited(); })) continue;
      std::unique_lock lock(mutex);
      sleepers.fetch_add(1);
      work_came.wait(lock, [this] { return awaited(); });
      sleepers.fetch_sub(1);
    }
  }

  void wake_workers() {
    if (sleepers.load() == 0) return;
    { std::lock_guard lock(mutex); }
    work_came.notify_all();
  }

  void await_the_last() {
    const auto finished = [this] { return unfinished.load() == 0; };
    if (spin_until(may_spin, finished)) return;
    std::unique_lock lock(mutex);
    caller_sleeps.store(true);
    work_done.wait(lock, finished);
    caller_sleeps.store(false);
  }

  void join_all() {
    stop.store(true);
    wake_workers();
    for (std::thread& worker : workers) worker.join();
  }
};

WorkerPool::WorkerPool(int threads) {
  if (threads < 1) {
    throw InvalidArgument("a worker pool of " + std::to_string(threads) +
                          " threads cannot work; ask for at least 1");
  }
  impl_ = std::make_unique<Impl>();
  // With more threads than processors a spinning thread would hold back the one it waits for.
  impl_->may_spin = threads <= static_cast<int>(std::thread::hardware_concurrency());
  try {
    for (int i = 1; i < threads; ++i) impl_->workers.emplace_back([this] { impl_->serve(); });
  } catch (const std::exception& failure) {
    impl_->join_all();
    throw Error("could not start " + std::to_string(threads - 1) + " worker threads (" +
                failure.what() + "); ask for fewer threads or raise the process limit");
  }
}

WorkerPool::~WorkerPool() { impl_->join_all(); }

int WorkerPool::threads() const { return static_cast<int>(impl_->workers.size()) + 1; }

void WorkerPool::run(int count, const std::function<void(int)>& body) {
  if (count <= 1 || impl_->workers.empty()) {
    for (int i = 0; i < count; ++i) body(i);
    return;
  }
  impl_->body = &body;
  impl_->count = count;
  impl_->unfinished.store(count);
  impl_->unclaimed.store(count);
  impl_->wake_workers();
  impl_->work_until_claimed();
  impl_->await_the_last();
}

}  // namespace prophet
