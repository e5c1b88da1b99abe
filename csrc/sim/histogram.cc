#include "sim/histogram.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace prophet {
namespace {

constexpr int kBits = 7;  // a power of two is cut into 2^kBits buckets
constexpr std::uint64_t kCut = std::uint64_t{1} << kBits;

// Values below 2 * kCut have a bucket each; above, the top kBits + 1 bits choose.
std::size_t bucket_of(std::uint64_t value) {
  if (value < 2 * kCut) return value;
  const int shift = std::bit_width(value) - kBits - 1;
  return std::size_t(shift) * kCut + (value >> shift);
}

std::uint64_t middle_of(std::size_t bucket) {
  if (bucket < 2 * kCut) return bucket;
  const int shift = static_cast<int>(bucket / kCut) - 1;
  const std::uint64_t first = (bucket - std::uint64_t(shift) * kCut) << shift;
  return first + ((std::uint64_t{1} << shift) - 1) / 2;
}

}  // namespace

Histogram::Histogram() : buckets_(bucket_of(INT64_MAX) + 1) {}

void Histogram::add(Nanos value) {
  value = std::max<Nanos>(value, 0);
  ++buckets_[bucket_of(static_cast<std::uint64_t>(value))];
  least_ = count_ == 0 ? value : std::min(least_, value);
  most_ = std::max(most_, value);
  ++count_;
  sum_ += double(value);
}

Nanos Histogram::quantile(double q) const {
  if (count_ == 0) return 0;
  const double wanted = std::clamp(q, 0.0, 1.0) * double(count_);
  std::uint64_t seen = 0;
  for (std::size_t bucket = 0; bucket < buckets_.size(); ++bucket) {
    seen += buckets_[bucket];
    if (seen > 0 && double(seen) >= wanted) {
      return std::clamp(static_cast<Nanos>(middle_of(bucket)), least_, most_);
    }
  }
  return most_;
}

}  // namespace prophet
