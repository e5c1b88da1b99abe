// Which forecasts become wishes: the newest word on each layer, how far it may be trusted, and what
// prefetching has paid so far.
//
//  * Newest word: a later forecast for a layer replaces an earlier one; a layer that has run is
//    forgotten.
//  * Trust: for each layer, how many of the experts forecast lately the router then asked for, over
//    how many the probabilities promised; at most 1. Probabilities are multiplied by it, so drift
//    lowers wishes instead of hurting.
//  * Conscience: a prefetch that was used has saved a transfer, one that the router overtook the
//    part that had been moved. A demand that found a chunk of a prefetch on the link waited for
//    half of it; an expert that was evicted for a wish, and missed while it would still have been
//    here, costs a transfer. Both are kept as fading sums. When the cost exceeds the benefit,
//    nothing is wished for a while, twice as long each time it happens again.
//
// Not thread-safe: the engine holds the lock.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cache/cache.h"
#include "core/types.h"
#include "device/backend.h"
#include "policy/prefetch_policy.h"

namespace prophet {

class Planner {
 public:
  // `chunk` over `expert` bytes is what a demand waits for at most, in transfers of an expert.
  Planner(const Geometry& geometry, const PrefetchRule& rule, double chunk_share);

  void tick();  // a layer step begins
  // What a predictor said after the layer step number `tick`.
  void heard(std::int64_t tick, std::span<const Forecast> forecasts);
  // The router of the running layer asked for these experts; what was said of it is forgotten.
  void asked(std::int32_t layer, std::span<const std::int32_t> experts);

  // Outcomes, in transfers of an expert.
  void paid(double part) { benefit_ += part; }  // brought early, and used
  void regretted() { cost_ += 1; }              // evicted for a wish, and missed
  void delayed() { cost_ += chunk_ / 2; }       // a demand that found a prefetch on the link

  // The link: times of one expert and of one layer step, the part of a step without demands.
  struct Pace {
    double expert = 0, step = 0, idle = 0;  // any unit, the same for all
    double staged = 0, disk_idle = 0;       // of the lane into the staging tier, where there is one
  };
  void plan(const Cache& cache, const Pace& pace, std::vector<Prefetch>& wanted);

  std::int64_t ticks() const { return ticks_; }
  std::uint64_t steps_held() const { return held_; }  // layer steps without wishes, by conscience

 private:
  struct Word {
    std::int64_t tick = -1;   // when it was said; -1: nothing was
    std::int64_t number = 0;  // of what was heard: the later replaces the earlier of one tick
    std::vector<Forecast> forecasts;
  };
  struct Trust {
    double promised = 0, kept = 0;
  };
  double trust(std::int32_t layer) const;
  void weigh();

  const Geometry geometry_;
  const PrefetchRule rule_;
  const double chunk_;
  const std::unique_ptr<PrefetchPolicy> policy_;
  std::int64_t ticks_ = 0, heard_ = 0;
  std::vector<Word> words_;   // [layers]
  std::vector<Trust> trust_;  // [layers]
  std::vector<Forecast> candidates_;
  double benefit_ = 0, cost_ = 0;  // in transfers of an expert
  std::int64_t silent_until_ = 0, silence_ = 0;
  std::uint64_t held_ = 0;
};

}  // namespace prophet
