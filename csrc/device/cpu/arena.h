// The fast tier of a machine without an accelerator: one run of anonymous memory.
#pragma once

#ifndef __linux__
#error \
    "the cpu backend needs Linux (mmap, MADV_HUGEPAGE); write csrc/device/<system> for another one"
#endif

#include <cstddef>
#include <span>

namespace prophet {

// Begins on a huge page and is backed by huge pages where the system grants them, except for the
// tail that does not fill one: resident memory never exceeds `bytes` rounded up to 4 KiB.
// Nothing is touched: pages come with the first read into them.
class Arena {
 public:
  // Throws InvalidArgument saying how much was asked for.
  explicit Arena(std::size_t bytes);
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();

  std::span<std::byte> bytes() const { return bytes_; }

 private:
  std::span<std::byte> bytes_;
  std::size_t mapped_ = 0;
};

}  // namespace prophet
