// What is made on a device and must go again, and the thread on which it is made.
#pragma once

#include <exception>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "device/cuda/cuda_api.h"
#include "device/cuda/cuda_library.h"

namespace prophet {

// A stream, an event, an allocation. Errors of giving it back have nobody to go to.
struct CudaDestroy {
  int (*destroy)(void*) = nullptr;
  void operator()(void* handle) const { destroy(handle); }
};
using CudaHandle = std::unique_ptr<void, CudaDestroy>;

// Does `work` on a thread of its own that uses `device`, so that the caller's device stays what it
// is. Throws what `work` throws, and DeviceError when the device cannot be used.
template <typename Work>
void on_device(const CudaApi& api, int device, Work&& work) {
  std::exception_ptr failed;
  std::thread([&] {
    try {
      cuda_check(api, api.use_device(device), "using CUDA device " + std::to_string(device));
      work();
    } catch (...) {
      failed = std::current_exception();
    }
  }).join();
  if (failed) std::rethrow_exception(failed);
}

// Events without timing, used again and again. Not thread-safe.
class CudaEvents {
 public:
  CudaEvents(const CudaApi& api, int device) : api_(api), device_(device) {}

  // Makes as many more as there are when none is free. Throws DeviceError.
  void* take() {
    if (free_.empty()) on_device(api_, device_, [this] { grow(); });
    void* event = free_.back();
    free_.pop_back();
    return event;
  }
  void give_back(void* event) { free_.push_back(event); }

 private:
  static constexpr std::size_t kFirst = 64;
  void grow() {
    for (std::size_t left = all_.empty() ? kFirst : all_.size(); left > 0; --left) {
      void* event = nullptr;
      const int code = api_.event_create(0, &event);
      if (code != kCudaSuccess && !free_.empty()) return;  // fewer will do
      cuda_check(api_, code, "making an event to order copies by");
      all_.emplace_back(event, CudaDestroy{api_.event_destroy});
      free_.push_back(event);
    }
  }

  const CudaApi& api_;
  const int device_;
  std::vector<CudaHandle> all_;
  std::vector<void*> free_;
};

}  // namespace prophet
