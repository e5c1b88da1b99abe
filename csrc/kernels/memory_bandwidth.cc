#include "kernels/memory_bandwidth.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "core/error.h"
#include "kernels/kernel_set.h"

namespace prophet {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;
constexpr std::size_t kPiece = kMiB / 8;
constexpr std::size_t kRead = 64 * kMiB;

double seconds_now() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

}  // namespace

BandwidthProbe::BandwidthProbe(std::size_t bytes) : bytes_((bytes + kMiB - 1) / kMiB * kMiB) {
  if (bytes_ == 0) {
    throw InvalidArgument(
        "a bandwidth probe of 0 bytes measures nothing; ask for more than the "
        "last-level cache");
  }
  void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    throw Error("could not map " + std::to_string(bytes_) + " bytes to measure bandwidth (" +
                std::strerror(errno) + "); free memory or ask for a smaller buffer");
  }
  data_ = static_cast<std::byte*>(memory);
  madvise(data_, bytes_, MADV_HUGEPAGE);  // a wish: small pages measure a little lower
  // Pages must be the buffer's own: unwritten ones all map the same zeros.
  for (std::size_t i = 0; i < bytes_; i += 4096) data_[i] = static_cast<std::byte>(i >> 12);
}

BandwidthProbe::~BandwidthProbe() { munmap(data_, bytes_); }

double BandwidthProbe::read(WorkerPool& pool, std::size_t bytes) {
  const KernelSet& kernels = kernel_set();
  const std::size_t pieces = (bytes + kPiece - 1) / kPiece;
  const std::size_t first = next_;
  const std::size_t all = bytes_ / kPiece;
  next_ = (next_ + pieces) % all;
  std::atomic<std::uint64_t> folded{0};
  const double begin = seconds_now();
  pool.run(static_cast<int>(pieces), [&](int i) {
    const std::byte* piece = data_ + (first + static_cast<std::size_t>(i)) % all * kPiece;
    folded.fetch_xor(kernels.fold(piece, kPiece), std::memory_order_relaxed);
  });
  return static_cast<double>(pieces * kPiece) / (seconds_now() - begin);
}

double read_bandwidth(int threads, double seconds) {
  if (!(seconds > 0)) {
    throw InvalidArgument("read_bandwidth cannot measure for " + std::to_string(seconds) +
                          " seconds; ask for more than 0");
  }
  WorkerPool pool(threads);
  BandwidthProbe probe;
  std::vector<double> rates;
  const double end = seconds_now() + seconds;
  do {
    rates.push_back(probe.read(pool, kRead));
  } while (seconds_now() < end);
  const auto middle = rates.begin() + static_cast<std::ptrdiff_t>(rates.size() / 2);
  std::nth_element(rates.begin(), middle, rates.end());
  return *middle;
}

}  // namespace prophet
