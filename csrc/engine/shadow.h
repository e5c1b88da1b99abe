// Does the predictor keep better experts than the best rule without it? Two caches of names only.
//
// Beside the real cache run two that hold no bytes: one evicts by the predictor's gaps, one by
// expected next use alone. Both see every few layers only, with the same share of the slots, which
// tells them apart at a fraction of the cost (set sampling, as for cache partitioning: Qureshi and
// Patt, MICRO 2006). Misses fade, so a drift of the text is noticed; while the predictor's cache
// misses clearly more, its gaps are not to be used.
//
// Not thread-safe; deterministic.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache/cache.h"
#include "core/types.h"

namespace prophet {

class Shadow {
 public:
  // `slots` and `scope` as those of the real cache.
  Shadow(const Geometry& geometry, std::int32_t slots, PoolScope scope);

  // The router of `layer` asked for `experts` (ids outside the layer and repetitions are ignored).
  // `gaps` are the predictor's for this layer, after it saw them; empty: it had nothing to say.
  void step(std::int32_t layer, std::span<const std::int32_t> experts, std::span<const float> gaps);

  bool trusts() const { return trusts_; }

 private:
  void serve(Cache& cache, std::int32_t layer, double& misses);
  void judge();

  const std::int32_t stride_;
  const Geometry geometry_;  // of the sampled layers
  Cache with_, without_;
  double with_misses_ = 0, without_misses_ = 0;
  bool trusts_ = true;
  std::vector<std::int32_t> experts_;
  std::vector<bool> named_;  // [experts_per_layer]
};

}  // namespace prophet
