// What should come before the router asks? At every moment a policy restates everything it wants.
//
// A policy is pure: it sees forecasts of absent experts and how fast the link is, and answers with
// a whole plan, best first. Deduplication, cancellation and promotion are set differences made
// elsewhere (transfer/reconcile.h); which slot a wish may take is the eviction policy's to say
// (EvictionPolicy::yields).
//
// Prefetch never pays twice: bytes brought for nothing cost link time that a demand may want, so a
// plan holds what is likely, soon, and fits into the time that demands leave the link idle.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "core/types.h"

namespace prophet {

// What a policy is shown. Forecasts name absent experts only, each once, of layers that have not
// run yet; their horizon is counted from the layer whose router spoke last.
struct Moment {
  std::int64_t tick = 0;  // layer steps so far
  std::span<const Forecast> forecasts;
  // Layer steps that one expert takes on the part of the link's time that demands leave idle; at
  // most kNever.
  double steps_per_expert = 0;
  // The same of reading one into the staging tier; kNever: one at a time.
  double steps_per_staged = 1e9;
};

class PrefetchPolicy {
 public:
  static constexpr double kNever = 1e9;

  virtual ~PrefetchPolicy() = default;
  // Fills `wanted` with the whole plan, best first.
  virtual void plan(const Moment& moment, std::vector<Prefetch>& wanted) = 0;
};

// A plan by rule; every published system here is one setting of it.
struct PrefetchRule {
  enum class Order : std::uint8_t {
    confidence,  // the likeliest first, a layer further ahead counting `discount` less
    deadline,    // the soonest layer first, then the likeliest
    proximity,   // probability divided by the layers ahead
  };
  std::int32_t first = 1;  // layers ahead: from `first` ...
  std::int32_t last = 0;   // ... to `last`; 0: no prefetch at all
  float least = 0;         // probability below which nothing is wanted in fast memory
  // Between this probability and `least` an expert is wanted in the staging tier, where there is
  // one; below it, nowhere. At or above `least`: the tier is not used ahead.
  float staging = 1;
  std::int32_t per_layer =
      std::numeric_limits<std::int32_t>::max();  // the likeliest absent ones of each layer
  Order order = Order::confidence;
  float discount = 0.02f;  // per layer, see Order::confidence
  // What a plan may hold for a deadline: the experts that idle time brings until then, times this,
  // and always one; infinity: everything.
  double fill = std::numeric_limits<double>::infinity();
  // Probabilities are scaled by how forecasts came true, and nothing is wanted while prefetching
  // costs more than it saves (engine/planner.h). False: forecasts are believed, whatever comes.
  bool conscience = true;

  bool operator==(const PrefetchRule&) const = default;
};

// Throws InvalidArgument: probabilities outside 0..1, layers that run backward, a fill that is not
// above zero.
std::unique_ptr<PrefetchPolicy> make_prefetch_policy(const PrefetchRule& rule);

}  // namespace prophet
