// Memory and streams of a device, owned by scope; every call is checked (DeviceError).
//
// Errors of giving back are ignored: a device that is lost has lost its memory too, and whoever
// calls it next hears of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "device/cuda/cuda_api.h"
#include "device/cuda/cuda_library.h"

namespace prophet {

// Device memory (Pinned = false) or page-locked host memory that kernels reach too. Grows, never
// shrinks; growing loses the content and waits for the device.
template <bool Pinned>
class DeviceBlock {
 public:
  explicit DeviceBlock(const CudaApi& api) : api_(api) {}
  ~DeviceBlock() { reset(); }
  DeviceBlock(const DeviceBlock&) = delete;

  void grow(std::size_t bytes, const char* what) {
    if (bytes <= bytes_) return;
    reset();
    void* memory = nullptr;
    cuda_check(
        api_, Pinned ? api_.pin(bytes, &memory) : api_.allocate(bytes, &memory),
        (Pinned ? "page-locking " : "allocating ") + std::to_string(bytes) + " bytes for " + what);
    memory_ = static_cast<std::byte*>(memory);
    bytes_ = bytes;
  }

  // Device blocks: an address that the host must not follow.
  std::byte* data() const { return memory_; }
  std::size_t size() const { return bytes_; }
  template <typename T>
  T* as() const {
    return reinterpret_cast<T*>(memory_);
  }
  // How kernels reach page-locked memory.
  template <typename T = std::byte>
  T* device_view() const {
    static_assert(Pinned, "device memory is reached at its own address");
    void* view = nullptr;
    cuda_check(api_, api_.device_address(memory_, &view), "mapping page-locked memory");
    return static_cast<T*>(view);
  }

 private:
  void reset() {
    if (memory_ != nullptr) (void)(Pinned ? api_.unpin(memory_) : api_.release(memory_));
    memory_ = nullptr;
    bytes_ = 0;
  }

  const CudaApi& api_;
  std::byte* memory_ = nullptr;
  std::size_t bytes_ = 0;
};

using DeviceMemory = DeviceBlock<false>;
using PinnedMemory = DeviceBlock<true>;

class DeviceStream {
 public:
  explicit DeviceStream(const CudaApi& api) : api_(api) {
    cuda_check(api_, api_.stream_create(0, &stream_), "making a stream");
  }
  ~DeviceStream() { (void)api_.stream_destroy(stream_); }
  DeviceStream(const DeviceStream&) = delete;
  void* get() const { return stream_; }

 private:
  const CudaApi& api_;
  void* stream_ = nullptr;
};

class DeviceEvent {
 public:
  explicit DeviceEvent(const CudaApi& api) : api_(api) {
    cuda_check(api_, api_.event_create(0, &event_), "making an event");
  }
  ~DeviceEvent() { (void)api_.event_destroy(event_); }
  DeviceEvent(const DeviceEvent&) = delete;
  void* get() const { return event_; }

 private:
  const CudaApi& api_;
  void* event_ = nullptr;
};

}  // namespace prophet
