#include "device/cpu/arena.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace prophet {
namespace {

constexpr std::size_t kHugePage = 2 << 20;

struct Mapping {
  std::size_t bytes = 0, resident = 0;
  bool huge = false;  // huge pages were asked for
};

// What the kernel says about the mapping that begins at `base`.
Mapping mapping_at(const void* base) {
  std::ifstream smaps("/proc/self/smaps");
  std::ostringstream begin;
  begin << std::hex << reinterpret_cast<std::uintptr_t>(base) << '-';
  Mapping found;
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    std::istringstream words(line);
    std::string name;
    words >> name;
    if (name.back() != ':') inside = name.starts_with(begin.str());
    if (!inside) continue;
    if (name == "Size:") words >> found.bytes;
    if (name == "Rss:") words >> found.resident;
    if (name == "VmFlags:") found.huge = line.find(" hg") != std::string::npos;
  }
  found.bytes *= 1024;
  found.resident *= 1024;
  return found;
}

TEST(Arena, BeginsOnAHugePage) {
  for (std::size_t bytes : {1u, 4096u, 4097u, 3u << 20, (4u << 20) + 1}) {
    const Arena arena(bytes);
    EXPECT_EQ(arena.bytes().size(), bytes);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(arena.bytes().data()) % kHugePage, 0u);
    arena.bytes().front() = arena.bytes().back() = std::byte{1};
  }
}

// The budget counts the arena as what was asked for: it must never hold more.
TEST(Arena, NeverHoldsMoreThanAskedFor) {
  const std::size_t bytes = (33u << 20) + 5000;
  const Arena arena(bytes);
  for (std::size_t i = 0; i < bytes; i += 4096) arena.bytes()[i] = std::byte{1};
  const Mapping mapping = mapping_at(arena.bytes().data());
  EXPECT_EQ(mapping.resident, mapping.bytes);
  // Huge pages end where the last whole one does, so that none reaches past the arena.
  if (mapping.huge) {
    EXPECT_EQ(mapping.bytes, bytes / kHugePage * kHugePage);
  }
}

TEST(Arena, TouchesItsPagesAndLeavesWhatIsThere) {
  const std::size_t bytes = (33u << 20) + 5000;
  Arena arena(bytes);
  for (std::size_t i = 0; i < bytes; i += 4096) arena.bytes()[i] = std::byte(i / 4096 % 251);
  arena.wait_touched();
  for (std::size_t i = 0; i < bytes; i += 4096) {
    ASSERT_EQ(arena.bytes()[i], std::byte(i / 4096 % 251)) << i;
  }

  Arena untouched(bytes);
  if (madvise(untouched.bytes().data(), 4096, 23) != 0) GTEST_SKIP() << "Linux before 5.14";
  untouched.wait_touched();
  std::vector<unsigned char> pages((bytes + 4095) / 4096);
  ASSERT_EQ(mincore(untouched.bytes().data(), bytes, pages.data()), 0);
  for (unsigned char page : pages) ASSERT_EQ(page & 1, 1);
}

TEST(Arena, GoesWhileItIsBeingTouched) {
  for (int i = 0; i < 20; ++i) Arena arena(std::size_t{64} << 20);
}

}  // namespace
}  // namespace prophet
