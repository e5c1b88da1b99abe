#include "device/cpu/arena.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <vector>

namespace prophet {
namespace {

std::size_t resident_bytes() {
  std::size_t total = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return resident * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

TEST(Arena, BeginsOnAHugePage) {
  for (std::size_t bytes : {1u, 4096u, 4097u, 3u << 20, (4u << 20) + 1}) {
    const Arena arena(bytes);
    EXPECT_EQ(arena.bytes().size(), bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(arena.bytes().data()) % (2 << 20), 0u);
    arena.bytes().front() = arena.bytes().back() = std::byte{1};
  }
}

// The budget counts the arena as what was asked for: it must never hold more.
TEST(Arena, IsEmptyAtFirstAndNeverHoldsMoreThanAskedFor) {
  const std::size_t bytes = (33u << 20) + 5000;
  const Arena arena(bytes);
  std::vector<unsigned char> pages((bytes + 4095) / 4096);
  ASSERT_EQ(mincore(arena.bytes().data(), bytes, pages.data()), 0);
  for (unsigned char page : pages) ASSERT_EQ(page & 1, 0);

  const std::size_t before = resident_bytes();
  for (std::size_t i = 0; i < bytes; i += 4096) arena.bytes()[i] = std::byte{1};
  const std::size_t slack = 1 << 20;  // whatever else the process does meanwhile
  EXPECT_LE(resident_bytes(), before + bytes + slack);
  EXPECT_GE(resident_bytes() + slack, before + bytes);
}

}  // namespace
}  // namespace prophet
