// Quantiles of any number of durations in fixed memory.
//
// Buckets are 1/128 of a power of two wide: a quantile is off by less than 0.4 %, and exact below
// 256 ns. Count, mean, least and most are exact.
#pragma once

#include <cstdint>
#include <vector>

#include "core/types.h"

namespace prophet {

class Histogram {
 public:
  Histogram();

  void add(Nanos value);  // negative counts as 0

  std::uint64_t count() const { return count_; }
  double mean() const { return count_ == 0 ? 0 : sum_ / double(count_); }
  Nanos least() const { return count_ == 0 ? 0 : least_; }
  Nanos most() const { return most_; }
  // The smallest bucket (its middle, within [least, most]) that at least share `q` of all values do
  // not exceed; 0 when empty.
  Nanos quantile(double q) const;

 private:
  std::vector<std::uint64_t> buckets_;
  std::uint64_t count_ = 0;
  double sum_ = 0;
  Nanos least_ = 0, most_ = 0;
};

}  // namespace prophet
