#include "kernels/memory_bandwidth.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "kernels/ffn_reference.h"

namespace prophet {
namespace {

constexpr double kSlowest = 1e6;   // a sanitizer on a loaded machine
constexpr double kFastest = 1e14;  // beyond any memory

TEST(MemoryBandwidth, IsAPlausibleRate) {
  for (int threads : {1, 2}) {
    const double rate = read_bandwidth(threads, 0.02);
    EXPECT_GT(rate, kSlowest);
    EXPECT_LT(rate, kFastest);
  }
}

TEST(MemoryBandwidth, EveryInstructionSetReads) {
  BandwidthProbe probe((std::size_t{4} << 20) + 1);
  EXPECT_EQ(probe.bytes(), std::size_t{5} << 20);
  WorkerPool pool(2);
  testing::for_each_isa([&](const std::string& isa) {
    for (std::size_t bytes : {std::size_t{1}, std::size_t{3} << 20, std::size_t{17} << 20}) {
      const double rate = probe.read(pool, bytes);
      EXPECT_GT(rate, kSlowest) << isa;
      EXPECT_LT(rate, kFastest) << isa;
    }
  });
}

TEST(MemoryBandwidth, RefusesWhatMeasuresNothing) {
  EXPECT_THROW(read_bandwidth(0, 1.0), InvalidArgument);
  EXPECT_THROW(read_bandwidth(1, 0.0), InvalidArgument);
  EXPECT_THROW(read_bandwidth(1, std::nan("")), InvalidArgument);
  EXPECT_THROW(BandwidthProbe(0), InvalidArgument);
}

TEST(MemoryBandwidth, MemoryThatCannotBeHadIsASentence) {
  try {
    BandwidthProbe probe(std::size_t{1} << 60);
    FAIL() << "mapped an exabyte";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("could not map"), std::string::npos);
  }
}

}  // namespace
}  // namespace prophet
