// Small deterministic routing traces and a cache without states to replay them on.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <optional>
#include <ranges>
#include <vector>

#include "policy/eviction_policy.h"

namespace prophet::testing {

// Knuth's MMIX linear congruential generator; the same numbers on every machine and library.
class Lcg {
 public:
  explicit Lcg(std::uint64_t seed) : state_(seed * 2862933555777941757u + 3037000493u) {}
  std::uint32_t below(std::uint32_t bound) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::uint32_t>(((state_ >> 32) * bound) >> 32);
  }

 private:
  std::uint64_t state_;
};

// The distinct experts of one layer step.
struct Step {
  std::int32_t layer = 0;
  std::vector<std::int32_t> experts;
};

// `tokens` passes over all layers, top_k experts each. With `skew`, expert e is drawn about
// 1 / (1 + e') as often as the favourite, e' being its place in an order of favourites that is
// rotated every 64 tokens: popular experts, and drift. Otherwise all are equally likely.
inline std::vector<Step> make_trace(const Geometry& geometry, std::int32_t tokens, bool skew,
                                    std::uint64_t seed) {
  Lcg random(seed);
  const std::int32_t count = geometry.experts_per_layer;
  std::vector<std::uint32_t> weight(count);
  std::uint32_t sum = 0;
  for (std::int32_t e = 0; e < count; ++e) sum += weight[e] = skew ? 5040 / (1 + e) : 1;
  std::vector<Step> steps;
  for (std::int32_t token = 0; token < tokens; ++token) {
    for (std::int32_t layer = 0; layer < geometry.layers; ++layer) {
      Step step{layer, {}};
      while (std::ssize(step.experts) < geometry.top_k) {
        std::uint32_t draw = random.below(sum);
        std::int32_t place = 0;
        while (draw >= weight[place]) draw -= weight[place++];
        const std::int32_t expert = (place + 7 * layer + 3 * (token / 64)) % count;
        if (std::ranges::find(step.experts, expert) == step.experts.end()) {
          step.experts.push_back(expert);
        }
      }
      steps.push_back(std::move(step));
    }
  }
  return steps;
}

// Which experts are present and which of them may go. `pool` restricts victims to one layer.
class FakeView : public CacheView {
 public:
  explicit FakeView(const Geometry& geometry)
      : geometry(geometry), present(geometry.total()), held(geometry.total()) {}
  bool evictable(ExpertKey key) const override {
    const std::int32_t at = geometry.index(key);
    return present[at] && !held[at] && (!pool || key.layer == *pool);
  }
  std::optional<std::int32_t> layer() const override { return pool; }
  std::int32_t count() const {
    return static_cast<std::int32_t>(
        std::ranges::count_if(std::views::iota(0, geometry.total()), [&](std::int32_t at) {
          return present[at] && (!pool || geometry.key(at).layer == *pool);
        }));
  }
  std::vector<std::int32_t> candidates() const {
    std::vector<std::int32_t> found;
    for (std::int32_t at = 0; at < geometry.total(); ++at) {
      if (evictable(geometry.key(at))) found.push_back(at);
    }
    return found;
  }

  const Geometry geometry;
  std::vector<bool> present;
  std::vector<bool> held;
  std::optional<std::int32_t> pool;
};

// Called before each eviction with what may go and what the policy chose.
using OnVictim = std::function<void(const FakeView&, std::optional<ExpertKey>)>;

struct Listener {  // a reference implementation hears what the policy hears
  std::function<void(std::int32_t layer)> tick = [](std::int32_t) {};
  std::function<void(std::int32_t at)> arrived = [](std::int32_t) {};
  std::function<void(std::int32_t at)> used = [](std::int32_t) {};
  OnVictim victim = [](const FakeView&, std::optional<ExpertKey>) {};
};

// Serves the trace with `slots` experts in all, or per layer; a step's hits are held before its
// misses are admitted. Returns the number of misses.
inline std::int64_t replay(EvictionPolicy& policy, const Geometry& geometry,
                           const std::vector<Step>& trace, std::int32_t slots, bool per_layer,
                           const Listener& listener = {}) {
  FakeView view(geometry);
  std::int64_t misses = 0;
  for (const Step& step : trace) {
    policy.tick(step.layer);
    listener.tick(step.layer);
    if (per_layer) view.pool = step.layer;
    std::vector<ExpertKey> missing;
    const auto use = [&](ExpertKey key) {
      policy.used(key);
      listener.used(geometry.index(key));
      view.held[geometry.index(key)] = true;
    };
    for (std::int32_t expert : step.experts) {
      const ExpertKey key{step.layer, expert};
      if (view.present[geometry.index(key)]) {
        use(key);
      } else {
        missing.push_back(key);
      }
    }
    for (ExpertKey key : missing) {
      ++misses;
      if (view.count() >= slots) {
        const std::optional<ExpertKey> victim = policy.victim(view, key);
        listener.victim(view, victim);
        if (!victim) return -1;
        view.present[geometry.index(*victim)] = false;
        policy.left(*victim);
      }
      view.present[geometry.index(key)] = true;
      policy.arrived(key);
      listener.arrived(geometry.index(key));
      use(key);
    }
    for (std::int32_t expert : step.experts)
      view.held[geometry.index({step.layer, expert})] = false;
  }
  return misses;
}

}  // namespace prophet::testing
