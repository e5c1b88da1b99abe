// The fast tier of a machine without an accelerator: one run of anonymous memory.
#pragma once

#ifndef __linux__
#error \
    "the cpu backend needs Linux (mmap, MADV_HUGEPAGE); write csrc/device/<system> for another one"
#endif

#include <atomic>
#include <cstddef>
#include <span>
#include <thread>

namespace prophet {

// Begins on a huge page and is backed by huge pages where the system grants them, except for the
// tail that does not fill one: resident memory never exceeds `bytes` rounded up to 4 KiB.
//
// A new page costs its zeroing, and a virtual machine may have to ask its host for it: on one that
// was measured, reads into pages never used before ran at an eighth of the disk's speed. So a
// thread of low priority touches them from the first slot on, while the model loads. It is a wish:
// where the system refuses (Linux before 5.14), pages come with the first read into them.
class Arena {
 public:
  // Throws InvalidArgument saying how much was asked for.
  explicit Arena(std::size_t bytes);
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();

  std::span<std::byte> bytes() const { return bytes_; }

  // Returns when every page has been touched, or the system refused to.
  void wait_touched();

 private:
  void touch();

  std::span<std::byte> bytes_;
  std::size_t mapped_ = 0;
  std::atomic<bool> stop_ = false;
  std::thread toucher_;
};

}  // namespace prophet
