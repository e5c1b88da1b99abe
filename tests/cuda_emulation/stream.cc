#include "stream.h"

#include <algorithm>
#include <thread>

#include "faults.h"
#include "settings.h"

namespace prophet::emulation {
namespace {

using namespace std::chrono_literals;

// A lost device ends what it does (copies and kernels that wait for the host look at device_lost);
// whoever waits for it does so no longer than this.
constexpr auto kLost = 1s;

// Until done() holds; false when a lost device never got there.
template <class Done>
bool settle(std::condition_variable& changed, std::unique_lock<std::mutex>& lock, Done done) {
  while (!done()) {
    if (device_lost()) return changed.wait_for(lock, kLost, done);
    changed.wait_for(lock, 20ms);
  }
  return true;
}

struct Register {
  std::mutex mutex;
  std::vector<std::weak_ptr<Stream>> streams;
  std::uint64_t made = 0;
};

Register& registered() {
  static auto* kept = new Register;
  return *kept;
}

}  // namespace

void Mark::reach() {
  before_.give();
  const Unordered hidden;
  const std::scoped_lock lock(mutex_);
  reached_ = true;
  when_ = std::chrono::steady_clock::now();
  changed_.notify_all();
}

bool Mark::reached() {
  bool yes = false;
  {
    const Unordered hidden;
    const std::scoped_lock lock(mutex_);
    yes = reached_;
  }
  if (yes) before_.take();
  return yes;
}

void Mark::wait() {
  {
    const Unordered hidden;
    std::unique_lock lock(mutex_);
    if (!settle(changed_, lock, [&] { return reached_; })) return;
  }
  before_.take();
}

std::chrono::steady_clock::time_point Mark::when() {
  const Unordered hidden;
  const std::scoped_lock lock(mutex_);
  return when_;
}

Stream::Stream(int device, int priority, std::uint64_t number)
    : device_(device), priority_(priority) {
  const std::uint64_t seed = settings().seed;
  random_ = seed ? (seed + number) * 0x9E3779B97F4A7C15u | 1 : 0;
}

std::shared_ptr<Stream> Stream::make(int device, int priority) {
  const Unordered hidden;
  const std::scoped_lock lock(registered().mutex);
  auto& all = registered().streams;
  std::erase_if(all, [](const auto& each) { return each.expired(); });
  std::shared_ptr<Stream> made(new Stream(device, priority, ++registered().made));
  all.push_back(made);
  std::thread([made] { made->run(); }).detach();  // ends after stop(), or with the process
  return made;
}

void Stream::run() {
  for (;;) {
    std::unique_ptr<Task> task;
    {
      const Unordered hidden;
      std::unique_lock lock(mutex_);
      busy_ = false;
      if (queue_.empty()) drained_.notify_all();
      arrived_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
      if (queue_.empty()) return;
      task = std::move(queue_.front());
      queue_.pop_front();
      busy_ = true;
    }
    task->queued.take();
    dawdle();
    (*task->work)();
    task.reset();  // whoever waits for the work waits for the end of what it owned
    done_.give();
  }
}

void Stream::dawdle() {
  if (!random_) return;
  random_ ^= random_ << 13, random_ ^= random_ >> 7, random_ ^= random_ << 17;
  if (random_ % 3 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random_ / 3 % 200));
}

void Stream::queue(std::shared_ptr<Work> work) {
  auto task = std::make_unique<Task>();
  task->work = std::move(work);
  task->queued.give();
  const Unordered hidden;
  const std::scoped_lock lock(mutex_);
  queue_.push_back(std::move(task));
  arrived_.notify_one();
}

void Stream::push(std::function<void()> run) {
  auto work = std::make_shared<Work>(std::move(run));
  {
    const Unordered hidden;
    const std::scoped_lock lock(mutex_);
    if (capture_) {
      capture_->nodes.push_back(std::move(work));
      return;
    }
  }
  queue(std::move(work));
}

void Stream::replay(const Graph& graph) {
  for (const auto& work : graph.nodes) queue(work);
}

void Stream::wait() {
  {
    const Unordered hidden;
    std::unique_lock lock(mutex_);
    if (!settle(drained_, lock, [&] { return !busy_ && queue_.empty(); })) return;
  }
  done_.take();
}

bool Stream::idle() {
  {
    const Unordered hidden;
    const std::scoped_lock lock(mutex_);
    if (busy_ || !queue_.empty()) return false;
  }
  done_.take();
  return true;
}

void Stream::stop() {
  const Unordered hidden;
  const std::scoped_lock lock(mutex_);
  stopping_ = true;
  arrived_.notify_one();
}

cudaError_t Stream::begin_capture() {
  const Unordered hidden;
  const std::scoped_lock lock(mutex_);
  if (capture_) return cudaErrorIllegalState;
  capture_ = std::make_unique<Capture>();
  return cudaSuccess;
}

cudaError_t Stream::end_capture(std::unique_ptr<Graph>& graph) {
  std::unique_ptr<Capture> ended;
  {
    const Unordered hidden;
    const std::scoped_lock lock(mutex_);
    ended = std::move(capture_);
  }
  if (!ended) return cudaErrorIllegalState;
  if (ended->spoiled) return cudaErrorStreamCaptureInvalidated;
  graph = std::make_unique<Graph>();
  graph->device = device_;
  graph->nodes = std::move(ended->nodes);
  return cudaSuccess;
}

const void* Stream::capturing() {
  const Unordered hidden;
  const std::scoped_lock lock(mutex_);
  return capture_.get();
}

void Stream::spoil_capture() {
  const Unordered hidden;
  const std::scoped_lock lock(mutex_);
  if (capture_) capture_->spoiled = true;
}

std::vector<std::shared_ptr<Stream>> all_streams() {
  std::vector<std::shared_ptr<Stream>> found;
  const Unordered hidden;
  const std::scoped_lock lock(registered().mutex);
  for (const auto& each : registered().streams)
    if (auto stream = each.lock()) found.push_back(std::move(stream));
  return found;
}

}  // namespace prophet::emulation
