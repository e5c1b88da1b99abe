// The hit path: what a layer step costs when every expert is resident and nothing is computed.
//
//   route → lease → release, 64 layers x 128 experts, top-8
#include <benchmark/benchmark.h>

#include <algorithm>
#include <memory>
#include <random>

#include "device/manual/manual_backend.h"
#include "engine/engine.h"
#include "store/synthetic_store.h"

namespace prophet {
namespace {

constexpr Geometry kGeometry{64, 128, 8};

std::vector<std::int32_t> some_experts(std::mt19937& random) {
  std::vector<std::int32_t> all(kGeometry.experts_per_layer);
  for (std::int32_t i = 0; i < kGeometry.experts_per_layer; ++i) all[i] = i;
  std::shuffle(all.begin(), all.end(), random);
  all.resize(kGeometry.top_k);
  return all;
}

void BM_AllHitLayer(benchmark::State& state, const char* policy) {
  auto store = std::make_shared<SyntheticStore>(kGeometry, 64, 64);
  auto backend = std::make_shared<ManualBackend>();
  backend->open({"synthetic"});
  EngineOptions options;
  options.slots = kGeometry.total();
  options.policy = policy;
  Engine engine(store, backend, options);
  Lease lease;
  for (std::int32_t layer = 0; layer < kGeometry.layers; ++layer) {
    for (std::int32_t expert = 0; expert < kGeometry.experts_per_layer; ++expert) {
      const std::int32_t one[] = {expert};
      engine.lease(layer, one, lease);
      engine.wait(lease, expert);
      engine.release(lease);
    }
  }
  std::mt19937 random(1);
  std::vector<std::vector<std::int32_t>> routes(997);
  for (auto& route : routes) route = some_experts(random);
  std::size_t step = 0;
  for (auto _ : state) {
    const std::int32_t layer = static_cast<std::int32_t>(step % kGeometry.layers);
    engine.step(layer);
    engine.lease(layer, routes[step % routes.size()], lease);
    engine.release(lease);
    ++step;
  }
  if (engine.counters().misses != std::uint64_t(kGeometry.total())) {
    state.SkipWithError("a hit was missed");
  }
}
BENCHMARK_CAPTURE(BM_AllHitLayer, lru, "lru");
BENCHMARK_CAPTURE(BM_AllHitLayer, lfu, "lfu");
BENCHMARK_CAPTURE(BM_AllHitLayer, lfru, "lfru");
BENCHMARK_CAPTURE(BM_AllHitLayer, expected_next_use, "expected-next-use");

}  // namespace
}  // namespace prophet
