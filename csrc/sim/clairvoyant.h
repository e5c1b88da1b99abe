// No system with the same slots and the same link can be faster: a bound on time.
//
// For any schedule of transfers and evictions, with whatever foresight, let T(s) be when layer step
// s ends. It needs:
//
//   T(s) >= T(s-1) + c(s)                                    c: what the processor computes in s
//   T(s) >= T(j) + (M(s) - M(j) - C) x + latency + e          for every earlier step j
//   T(s) >= M(s) x + latency + e                              from an empty cache
//
// where M(s) is the fewest experts that any choice of victims brings up to s (Belady's count, which
// is the least for every beginning of a trace at once), C the slots, x an expert's time on the link
// and e the computing of one expert. The second: what is resident or half brought when step j ends
// fills at most C slots; all else that steps j+1 to s use is moved afterwards, at least
// M(s) - M(j) - C experts, or M(s) would not have been the fewest; and the last of them lands, and
// is computed, before s ends.
//
// This takes the least T that satisfies them. A real system can come near it, and may not reach it:
// slots that wait for the future cannot hold the present. Durations of single tokens are not
// bounds, only their sum is, and with it the mean.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/types.h"

namespace prophet {

class Clairvoyant {
 public:
  // Nanoseconds, all of them at least 0.
  Clairvoyant(std::int32_t slots, Nanos on_link, Nanos latency, Nanos expert)
      : slots_(slots), on_link_(on_link), after_(latency + expert) {}

  // A layer step computes for `compute` and lacks `misses` experts, by Belady. Returns when it
  // ends.
  Nanos step(Nanos compute, std::uint64_t misses) {
    missed_ += std::int64_t(misses);
    now_ += compute;
    if (misses > 0) now_ = std::max(now_, link_ + missed_ * on_link_ + after_);
    link_ = std::max(link_, now_ - (missed_ + slots_) * on_link_);
    return now_;
  }

  // The processor computes outside of layers.
  void compute(Nanos time) { now_ += time; }

  // What is measured begins here, whatever was brought before: any cache of so many slots may
  // stand.
  void begin() { link_ = now_ - (missed_ + slots_) * on_link_; }

  Nanos now() const { return now_; }
  std::int64_t missed() const { return missed_; }

 private:
  const std::int64_t slots_;
  const Nanos on_link_, after_;
  std::int64_t missed_ = 0;
  Nanos now_ = 0;
  Nanos link_ = 0;  // the largest T(j) - (M(j) + C) x so far; at first 0, for the empty cache
};

}  // namespace prophet
