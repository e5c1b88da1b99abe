// A plan is a set: what is wished now, compared with what is moving.
//
// Each time a prefetch policy speaks it restates everything it wants. Deduplication, cancellation
// and reordering are then one set difference, here and nowhere else.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "cache/cache.h"
#include "core/types.h"

namespace prophet {

struct Reconciled {
  std::vector<Prefetch> start;    // absent and wished: in the order to bring them
  std::vector<ExpertKey> cancel;  // moving as a prefetch and no longer wished
  std::vector<ExpertKey> resume;  // being cancelled and wished again
};

// `wanted`, best first, may name a key twice (the first counts) and keys that are already here
// (dropped: a touch, not a transfer). `moving` are the running prefetches. `start` keeps the order
// of `wanted`. `state` tells where a key stands.
Reconciled reconcile(std::span<const Prefetch> wanted, std::span<const ExpertKey> moving,
                     const std::function<Residency(ExpertKey)>& state);

}  // namespace prophet
