#include "kernels/memory_bandwidth.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "kernels/ffn_reference.h"

namespace prophet {
namespace {

constexpr double kSlowest = 1e7;   // a sanitizer on a loaded machine
constexpr double kFastest = 1e14;  // beyond any memory

TEST(MemoryBandwidth, IsAPlausibleRate) {
  for (int threads : {1, 2}) {
    const double rate = read_bandwidth(threads, 0.02);
    EXPECT_GT(rate, kSlowest);
    EXPECT_LT(rate, kFastest);
  }
}

TEST(MemoryBandwidth, EveryInstructionSetReads) {
  BandwidthProbe probe(std::size_t{5} << 20);
  WorkerPool pool(2);
  testing::for_each_isa([&](const std::string& isa) {
    EXPECT_GT(probe.pass(pool), kSlowest) << isa;
    EXPECT_LT(probe.pass(pool), kFastest) << isa;
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
