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

  // Reads the buffer once with all threads of the pool. Bytes per second.
  double pass(WorkerPool& pool);

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

// Median over passes that fill about `seconds`, at least one. Bytes per second that `threads`
// threads read from DRAM. Throws InvalidArgument unless threads >= 1 and seconds > 0.
double read_bandwidth(int threads, double seconds);

}  // namespace prophet
