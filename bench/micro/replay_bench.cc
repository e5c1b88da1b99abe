// How fast a trace is replayed: expert accesses per second of one core, through the engine.
//
// 24 layers x 32 experts, top-4, of which a token keeps about half from the one before; a quarter
// of the slots. Argument: chunks per expert. items/s are accesses/s.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <random>
#include <vector>

#include "sim/next_use.h"
#include "sim/replay.h"

namespace prophet {
namespace {

constexpr Geometry kGeometry{24, 32, 4};
constexpr std::int32_t kTokens = 512;
constexpr std::uint64_t kExpertBytes = std::uint64_t{1} << 20;

std::vector<std::int32_t> make_routes() {
  std::mt19937 random(1);
  std::vector<std::int32_t> routes;
  std::vector<std::vector<std::int32_t>> last(kGeometry.layers);
  for (std::int32_t token = 0; token < kTokens; ++token) {
    for (std::int32_t layer = 0; layer < kGeometry.layers; ++layer) {
      std::vector<std::int32_t>& set = last[layer];
      std::erase_if(set, [&](std::int32_t) { return random() % 2 == 0; });
      while (std::ssize(set) < kGeometry.top_k) {
        const auto expert = static_cast<std::int32_t>(std::min(random() % 32, random() % 32));
        if (std::find(set.begin(), set.end(), expert) == set.end()) set.push_back(expert);
      }
      routes.insert(routes.end(), set.begin(), set.end());
    }
  }
  return routes;
}

void BM_Replay(benchmark::State& state, const char* policy, PoolScope pool) {
  const std::vector<std::int32_t> routes = make_routes();
  ReplayOptions options;
  options.geometry = kGeometry;
  options.expert_bytes = kExpertBytes;
  options.link.bytes_per_second = 25e9;
  options.times.layer = 50'000;
  options.times.expert = 10'000;
  options.engine.slots = kGeometry.total() / 4;
  options.engine.policy = policy;
  options.engine.pool = pool;
  options.engine.mover.chunk_bytes = kExpertBytes / std::uint64_t(state.range(0));
  Replay replay(options);
  std::vector<std::int64_t> next;
  if (std::string_view(policy) == "belady") {
    NextUse(kGeometry, replay.rooms(), kTokens * kGeometry.layers).prepend(routes, 1, next);
  }
  for (auto _ : state) replay.decode({routes, {}, next});
  const ReplayResult result = replay.result();
  const double accesses = double(result.tokens) * kGeometry.layers * kGeometry.top_k;
  state.SetItemsProcessed(static_cast<std::int64_t>(accesses));
  state.counters["miss_rate"] = double(result.counters.misses) / accesses;
}
BENCHMARK_CAPTURE(BM_Replay, lru_per_layer, "lru", PoolScope::per_layer)->Arg(1)->Arg(16);
BENCHMARK_CAPTURE(BM_Replay, lru_global, "lru", PoolScope::global)->Arg(1);
BENCHMARK_CAPTURE(BM_Replay, expected_next_use_global, "expected-next-use", PoolScope::global)
    ->Arg(1);
BENCHMARK_CAPTURE(BM_Replay, belady_global, "belady", PoolScope::global)->Arg(1);

}  // namespace
}  // namespace prophet
