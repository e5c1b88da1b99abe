// What the cache and its policies cost without any bytes moving.
//
//   AllHitLayer   one layer step of 64 layers x 128 experts, top-8, everything resident: tick, then
//                 used and lease of each, then release of each. Time is per layer step.
//   Replay        a skewed trace of 24 layers x 32 experts, top-4, a quarter of the slots; an
//   access is
//                 `used`, after admit + loading + landed where it misses. items/s are accesses/s.
//   Eviction      a layer step that misses one expert: tick, an admit that evicts, load, landing
//   and
//                 use, in a global pool holding half of 64 x 128 experts, all evictable.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "cache/cache.h"

namespace prophet {
namespace {

// Distinct experts for every layer step of `tokens` tokens; low ids more often than high ones.
std::vector<std::vector<std::int32_t>> make_routes(const Geometry& geometry, int tokens) {
  std::mt19937 random(1);
  std::vector<std::vector<std::int32_t>> steps(std::size_t(tokens) * geometry.layers);
  for (auto& experts : steps) {
    while (std::ssize(experts) < geometry.top_k) {
      const std::uint32_t a = random() % geometry.experts_per_layer;
      const std::uint32_t b = random() % geometry.experts_per_layer;
      const auto expert = static_cast<std::int32_t>(std::min(a, b));
      if (std::find(experts.begin(), experts.end(), expert) == experts.end()) {
        experts.push_back(expert);
      }
    }
  }
  return steps;
}

void bring(Cache& cache, ExpertKey key) {
  benchmark::DoNotOptimize(cache.admit(key));
  cache.loading(key);
  cache.landed(key);
}

void AllHitLayer(benchmark::State& state, const std::string& policy) {
  const Geometry geometry{64, 128, 8};
  Cache cache(geometry, geometry.total(), PoolScope::global,
              make_eviction_policy(policy, geometry));
  for (std::int32_t at = 0; at < geometry.total(); ++at) bring(cache, geometry.key(at));
  const auto routes = make_routes(geometry, 32);
  std::size_t step = 0;
  for (auto _ : state) {
    const std::int32_t layer = static_cast<std::int32_t>(step % geometry.layers);
    cache.tick(layer);
    for (std::int32_t expert : routes[step]) {
      cache.used({layer, expert});
      cache.lease({layer, expert});
    }
    for (std::int32_t expert : routes[step]) cache.release({layer, expert});
    if (++step == routes.size()) step = 0;
  }
}

void Replay(benchmark::State& state, const std::string& policy, PoolScope scope) {
  const Geometry geometry{24, 32, 4};
  Cache cache(geometry, geometry.total() / 4, scope, make_eviction_policy(policy, geometry));
  const auto routes = make_routes(geometry, 256);
  std::size_t step = 0;
  std::int64_t misses = 0;
  for (auto _ : state) {
    const std::int32_t layer = static_cast<std::int32_t>(step % geometry.layers);
    cache.tick(layer);
    for (std::int32_t expert : routes[step]) {
      const ExpertKey key{layer, expert};
      if (cache.state(key) == Residency::absent) {
        bring(cache, key);
        ++misses;
      }
      cache.used(key);
    }
    if (++step == routes.size()) step = 0;
  }
  state.SetItemsProcessed(state.iterations() * geometry.top_k);
  state.counters["miss_rate"] =
      static_cast<double>(misses) / static_cast<double>(state.iterations() * geometry.top_k);
}

void Eviction(benchmark::State& state, const std::string& policy) {
  const Geometry geometry{64, 128, 8};
  Cache cache(geometry, geometry.total() / 2, PoolScope::global,
              make_eviction_policy(policy, geometry));
  for (std::int32_t at = 0; at < geometry.total() / 2; ++at) bring(cache, geometry.key(2 * at));
  std::mt19937 random(1);
  std::int32_t layer = 0;
  for (auto _ : state) {
    layer = (layer + 1) % geometry.layers;
    cache.tick(layer);
    ExpertKey key{layer, static_cast<std::int32_t>(random() % geometry.experts_per_layer)};
    for (int i = 0; cache.state(key) != Residency::absent && i < geometry.experts_per_layer; ++i) {
      key.expert = (key.expert + 1) % geometry.experts_per_layer;
    }
    if (cache.state(key) == Residency::absent) bring(cache, key);
    cache.used(key);
  }
}

const bool kRegistered = [] {
  for (const std::string& policy : eviction_policy_names()) {
    benchmark::RegisterBenchmark(("AllHitLayer/" + policy).c_str(), AllHitLayer, policy);
    benchmark::RegisterBenchmark(("Replay/per_layer/" + policy).c_str(), Replay, policy,
                                 PoolScope::per_layer);
    benchmark::RegisterBenchmark(("Replay/global/" + policy).c_str(), Replay, policy,
                                 PoolScope::global);
    benchmark::RegisterBenchmark(("Eviction/" + policy).c_str(), Eviction, policy);
  }
  return true;
}();

}  // namespace
}  // namespace prophet
