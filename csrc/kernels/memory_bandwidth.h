// How fast this machine's threads read memory: the ceiling of every kernel that streams weights.
#pragma once

#include <cstddef>

#include "kernels/worker_pool.h"

namespace prophet {

// Room that no last-level cache holds.
inline constexpr std::size_t kBandwidthBuffer = std::size_t{512} << 20;

// A buffer to read from, on huge pages where the system has them.
class BandwidthProbe {
 public:
  // `bytes` is rounded up to whole MiB. Throws InvalidArgument for 0, Error when the memory cannot
  // be had.
  explicit BandwidthProbe(std::size_t bytes = kBandwidthBuffer);
  ~BandwidthProbe();
  BandwidthProbe(const BandwidthProbe&) = delete;
  BandwidthProbe& operator=(const BandwidthProbe&) = delete;

  std::size_t bytes() const { return bytes_; }

  // Reads the next `bytes` (rounded up to whole pieces of 128 KiB) with all threads of the pool,
  // round and round the buffer. Bytes per second. Short reads tell the speed between two
  // interruptions, on a machine that others use too.
  double read(WorkerPool& pool, std::size_t bytes);

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  std::size_t next_ = 0;  // piece
};

// Median over passes that fill about `seconds`, at least one. Bytes per second that `threads`
// threads read from DRAM. Throws InvalidArgument unless threads >= 1 and seconds > 0.
double read_bandwidth(int threads, double seconds);

}  // namespace prophet
