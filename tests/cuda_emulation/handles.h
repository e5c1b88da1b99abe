// What the fake has given out and not taken back: an unknown handle is an error, never a crash.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>

#include "ordering.h"

namespace prophet::emulation {

template <class T>
class Handles {
 public:
  void* add(std::shared_ptr<T> made) {
    const Unordered hidden;
    const std::scoped_lock lock(mutex_);
    void* handle = made.get();
    live_[handle] = std::move(made);
    return handle;
  }
  std::shared_ptr<T> find(const void* handle) {
    const Unordered hidden;
    const std::scoped_lock lock(mutex_);
    const auto found = live_.find(handle);
    return found == live_.end() ? nullptr : found->second;
  }
  std::shared_ptr<T> remove(const void* handle) {
    const Unordered hidden;
    const std::scoped_lock lock(mutex_);
    const auto found = live_.find(handle);
    if (found == live_.end()) return nullptr;
    std::shared_ptr<T> last = std::move(found->second);
    live_.erase(found);
    return last;
  }
  std::uint64_t count() {
    const Unordered hidden;
    const std::scoped_lock lock(mutex_);
    return live_.size();
  }

 private:
  std::mutex mutex_;
  std::map<const void*, std::shared_ptr<T>> live_;
};

}  // namespace prophet::emulation
