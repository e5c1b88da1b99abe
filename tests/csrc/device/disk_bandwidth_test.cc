#include "device/cpu/disk_bandwidth.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"
#include "device/temp_files.h"

namespace prophet {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;
using testing_device::TempFiles;

TEST(DiskBandwidth, MeasuresWholeChunks) {
  TempFiles files;
  const std::string path = files.make("weights", 0, 1 << 20);
  for (IoKind io : {IoKind::auto_, IoKind::pread}) {
    const ReadBandwidth found = read_bandwidth(path, 0.02, 1 << 16, 4, io);
    EXPECT_GT(found.bytes, 0u);
    EXPECT_EQ(found.bytes % (1 << 16), 0u);
    EXPECT_GT(found.seconds, 0);
    EXPECT_DOUBLE_EQ(found.bytes_per_second, double(found.bytes) / found.seconds);
    EXPECT_GT(found.p50_ms, 0);
    EXPECT_GE(found.p99_ms, found.p50_ms);
    EXPECT_LE(found.p99_ms, 1e3 * found.seconds);
    EXPECT_THAT(found.io, HasSubstr("depth 4"));
  }
}

TEST(DiskBandwidth, RefusesWhatItCannotMeasure) {
  TempFiles files;
  const std::string small = files.make("small", 0, 1000);
  EXPECT_THAT([&] { read_bandwidth(small, 0.01, 1 << 16, 4, IoKind::auto_); },
              ThrowsMessage<ReadError>(HasSubstr(small + " holds 1000 bytes")));
  EXPECT_THAT([&] { read_bandwidth(files.path("missing"), 0.01, 1 << 16, 4, IoKind::auto_); },
              ThrowsMessage<ReadError>(HasSubstr("missing")));
  for (double seconds : {0.0, -1.0, 1e9, std::nan("")}) {
    EXPECT_THROW(read_bandwidth(small, seconds, 512, 4, IoKind::auto_), InvalidArgument);
  }
  EXPECT_THROW(read_bandwidth(small, 0.01, 0, 4, IoKind::auto_), InvalidArgument);
  EXPECT_THROW(read_bandwidth(small, 0.01, std::uint64_t{1} << 40, 4, IoKind::auto_),
               InvalidArgument);
  EXPECT_THROW(read_bandwidth(small, 0.01, 512, 0, IoKind::auto_), InvalidArgument);
}

}  // namespace
}  // namespace prophet
