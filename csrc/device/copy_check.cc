#include "device/copy_check.h"

#include <string>

#include "core/error.h"

namespace prophet {

void check_chunk(const Extent& from, const std::byte* to, std::size_t files, std::uint64_t unit) {
  if (from.file < 0 || static_cast<std::size_t>(from.file) >= files) {
    throw InvalidArgument("file number " + std::to_string(from.file) + " of " +
                          std::to_string(files) + " was not opened");
  }
  const auto at = reinterpret_cast<std::uintptr_t>(to);
  if (from.bytes == 0 || ((from.offset | from.bytes | at) & (unit - 1)) != 0) {
    throw InvalidArgument("a copy of " + std::to_string(from.bytes) + " bytes at offset " +
                          std::to_string(from.offset) + " is empty or not in units of " +
                          std::to_string(unit) + " bytes, address included");
  }
}

void check_inside(std::span<const std::byte> memory, const std::byte* to, std::uint64_t bytes) {
  const auto at = reinterpret_cast<std::uintptr_t>(to);
  const auto base = reinterpret_cast<std::uintptr_t>(memory.data());
  if (at < base || at - base > memory.size() || bytes > memory.size() - (at - base)) {
    throw InvalidArgument("a copy of " + std::to_string(bytes) +
                          " bytes would leave the fast memory of its backend");
  }
}

}  // namespace prophet
