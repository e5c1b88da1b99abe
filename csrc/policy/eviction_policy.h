// Which resident expert should go? A policy is pure: it decides from what it is told.
//
// The cache reports every arrival, use and departure, then asks for a victim. A policy never
// sees bytes, slots or time; its clock is the count of layer steps (`tick`): one tick per MoE layer
// executed, so a token advances it by Geometry::layers.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/types.h"

namespace prophet {

// What a policy may ask of the cache while it chooses.
class CacheView {
 public:
  virtual ~CacheView() = default;
  // Resident in the pool that needs room, not leased, not loading.
  virtual bool evictable(ExpertKey key) const = 0;
  // The one layer whose experts can be evictable here, or nothing when any layer's can. Lets a
  // policy look at one layer instead of all of them.
  virtual std::optional<std::int32_t> layer() const { return std::nullopt; }
};

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;
  virtual std::string name() const = 0;

  virtual void arrived(ExpertKey key) = 0;  // admitted; not yet used
  virtual void used(ExpertKey key) = 0;     // routed to and resident or brought
  // The same in a step that streams (Cache::stream): `share` of its tokens, above 0 and at most 1,
  // chose it. A later wave of the step may tell the same again.
  virtual void streamed(ExpertKey key, float share) {
    (void)share;
    used(key);
  }
  // True for policies that a step over many tokens would leave without memory, since to them what
  // came last is worth most: the cache then restricts the victims of such steps to what they
  // brought themselves (Cache::stream).
  virtual bool shielded() const { return false; }
  virtual void left(ExpertKey key) = 0;  // evicted, or its load failed or was cancelled

  // A forecast: needed with probability p at `deadline` (in ticks). Most policies ignore it.
  virtual void foreseen(ExpertKey key, float p, std::int64_t deadline) {
    (void)key, (void)p, (void)deadline;
  }
  // All that a predictor said after one layer step, of experts that are here and of others; told
  // only where forecasts are also wishes. Keys may lie outside the geometry.
  virtual void forecast(std::span<const Forecast> forecasts) { (void)forecasts; }
  // A predictor's word after `layer` has run: for each of its experts the expected turns of that
  // layer until the next use, >= 1, possibly truncated. Most policies ignore it.
  virtual void expects(std::int32_t layer, std::span<const float> gaps) { (void)layer, (void)gaps; }
  // Clairvoyance, which only a replay has: `key` is used next at `when`, a number that grows with
  // time. Only bounds listen.
  virtual void reveal(ExpertKey key, std::int64_t when) { (void)key, (void)when; }
  // The router of `layer` is about to be served; called once per MoE layer step, before `used`.
  virtual void tick(std::int32_t layer) { (void)layer; }

  // The expert to let go so that a slot becomes free for `incoming`, or nothing when every
  // candidate is worth more than it (a demand is then refused by the cache, so policies that
  // serve demands must always name one when any is evictable). Deterministic.
  virtual std::optional<ExpertKey> victim(const CacheView& view, ExpertKey incoming) const = 0;
  // May a wish take the slot of this victim? Not when the victim is needed sooner. Policies that
  // know no times always yield.
  virtual bool yields(ExpertKey victim, const Prefetch& wish) const {
    (void)victim, (void)wish;
    return true;
  }
};

// eviction_policy_names(), and the bound "belady", which only a replay can feed. Throws
// InvalidArgument listing the known names.
std::unique_ptr<EvictionPolicy> make_eviction_policy(std::string_view name,
                                                     const Geometry& geometry);
std::vector<std::string> eviction_policy_names();  // without the bound

}  // namespace prophet
