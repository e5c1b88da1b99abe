#include "engine/shadow.h"

#include <algorithm>
#include <cmath>

namespace prophet {
namespace {

constexpr std::int32_t kSampled = 6;    // layers, about
constexpr double kFade = 0.999;         // per miss of either cache: half-life 690 misses
constexpr double kDeviations = 1.5;     // "clearly": of the difference of two counts
constexpr double kLeastDifference = 4;  // misses
constexpr const char* kRule = "expected-next-use";

std::int32_t stride_of(const Geometry& g) { return std::max(1, g.layers / kSampled); }

Geometry sampled(const Geometry& g) {
  const std::int32_t stride = stride_of(g);
  return {(g.layers + stride - 1) / stride, g.experts_per_layer, g.top_k};
}

std::int32_t share(const Geometry& g, std::int32_t slots, PoolScope scope) {
  const Geometry few = sampled(g);
  const std::int64_t part = std::int64_t{slots} * few.layers / g.layers;
  const std::int64_t least = few.top_k * (scope == PoolScope::global ? 1 : few.layers);
  return std::int32_t(std::max(part, least));
}

}  // namespace

Shadow::Shadow(const Geometry& geometry, std::int32_t slots, PoolScope scope)
    : stride_(stride_of(geometry)),
      geometry_(sampled(geometry)),
      with_(geometry_, share(geometry, slots, scope), scope,
            make_eviction_policy(kRule, geometry_)),
      without_(geometry_, share(geometry, slots, scope), scope,
               make_eviction_policy(kRule, geometry_)),
      named_(std::size_t(geometry.experts_per_layer)) {}

void Shadow::step(std::int32_t layer, std::span<const std::int32_t> experts,
                  std::span<const float> gaps) {
  if (layer % stride_ != 0) return;
  experts_.clear();
  for (std::int32_t expert : experts) {
    if (expert < 0 || expert >= geometry_.experts_per_layer || named_[expert]) continue;
    named_[expert] = true;
    experts_.push_back(expert);
  }
  for (std::int32_t expert : experts_) named_[expert] = false;
  layer /= stride_;
  if (std::ssize(experts_) > with_.pool_slots(layer)) return;  // waves: no place to compare
  serve(with_, layer, with_misses_);
  serve(without_, layer, without_misses_);
  if (!gaps.empty()) with_.policy().expects(layer, gaps);
  judge();
}

void Shadow::serve(Cache& cache, std::int32_t layer, double& misses) {
  cache.tick(layer);
  for (std::int32_t expert : experts_) {  // those that are here may not make room for the others
    const ExpertKey key{layer, expert};
    if (cache.state(key) == Residency::resident) cache.lease(key);
  }
  for (std::int32_t expert : experts_) {
    const ExpertKey key{layer, expert};
    if (cache.state(key) == Residency::absent) {
      if (!cache.admit(key)) continue;
      cache.loading(key);
      cache.landed(key);
      cache.lease(key);
      misses += 1;
    }
    cache.used(key);
  }
  for (std::int32_t expert : experts_) {
    const ExpertKey key{layer, expert};
    if (cache.state(key) == Residency::leased) cache.release(key);
  }
}

void Shadow::judge() {
  const double sum = with_misses_ + without_misses_;
  const double clear = std::max(kLeastDifference, kDeviations * std::sqrt(sum));
  if (with_misses_ > without_misses_ + clear) trusts_ = false;
  if (with_misses_ <= without_misses_) trusts_ = true;
  // Fading by misses, not by time: evidence comes at the rate at which it matters.
  const double most = 1 / (1 - kFade);
  if (sum > most) {
    with_misses_ *= most / sum;
    without_misses_ *= most / sum;
  }
}

}  // namespace prophet
