#include "copy_engine.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "ordering.h"
#include "settings.h"

namespace prophet::emulation {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kMemcpyBytesPerSecond = 8e9;  // about; the model's time includes it

Clock::duration seconds(double value) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(value));
}

class Engine {
 public:
  void take(int priority) {
    const Unordered hidden;
    std::unique_lock lock(mutex_);
    ++waiting_[static_cast<std::size_t>(priority)];
    turn_.wait(lock, [&] { return !busy_ && nobody_before(priority); });
    --waiting_[static_cast<std::size_t>(priority)];
    busy_ = true;
  }
  void give_back() {
    const Unordered hidden;
    const std::scoped_lock lock(mutex_);
    busy_ = false;
    turn_.notify_all();
  }

 private:
  bool nobody_before(int priority) const {
    return std::all_of(waiting_.begin(), waiting_.begin() + priority,
                       [](int count) { return count == 0; });
  }

  std::mutex mutex_;
  std::condition_variable turn_;
  std::array<int, kPriorities> waiting_{};
  bool busy_ = false;
};

Engine& engine(int device, Direction direction) {
  static auto* mutex = new std::mutex;
  static auto* all = new std::map<std::pair<int, Direction>, Engine>;
  const Unordered hidden;
  const std::scoped_lock lock(*mutex);
  return (*all)[{device, direction}];
}

}  // namespace

void transfer(int device, Direction direction, int priority, double share, char* to,
              const char* from, std::size_t bytes) {
  const Settings machine = settings();
  Engine& mine = engine(device, direction);
  mine.take(priority);
  const auto begin = Clock::now();
  const auto size = static_cast<double>(bytes);
  double modelled = machine.latency_seconds;
  if (machine.bytes_per_second > 0) modelled += size / (machine.bytes_per_second * share);
  const double asleep = modelled - size / kMemcpyBytesPerSecond;
  if (asleep > 0) std::this_thread::sleep_until(begin + seconds(asleep));
  std::memcpy(to, from, bytes);
  if (modelled > 0) std::this_thread::sleep_until(begin + seconds(modelled));
  mine.give_back();
}

}  // namespace prophet::emulation
