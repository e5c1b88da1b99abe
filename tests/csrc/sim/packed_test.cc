// Continuous batching in a replay, against a plain count of sets.
#include <gtest/gtest.h>

#include <list>
#include <set>

#include "core/error.h"
#include "sim/sim_fixture.h"

namespace prophet::testing {
namespace {

constexpr Geometry kGeometry{4, 16, 4};
constexpr std::size_t kRow = 16;  // ids of a token

using Passes = std::vector<Replay::Pass>;

Passes random_passes(std::int32_t tokens, std::uint64_t seed) {
  Lcg random(seed);
  Passes passes;
  while (tokens > 0) {
    const std::int32_t count = std::min<std::int32_t>(tokens, 1 + random.below(3));
    passes.push_back({count, static_cast<std::int32_t>(random.below(count + 1))});
    tokens -= count;
  }
  return passes;
}

TEST(Packed, CountsAreThoseOfAnLruOfSets) {
  for (std::uint64_t seed = 0; seed < 4; ++seed) {
    const auto routes = make_routes(kGeometry, 150, true, seed);
    const Passes passes = random_passes(150, seed);
    ReplayOptions options = options_for(kGeometry, 24);
    options.engine.stream = false;
    Replay replay(options);
    std::vector<Nanos> ends;
    replay.packed({routes, {}, {}}, passes, ends);

    std::list<ExpertKey> cold_to_hot;
    std::uint64_t hits = 0, misses = 0, decoded = 0;
    std::size_t first = 0;
    for (const Replay::Pass& pass : passes) {
      for (std::int32_t layer = 0; layer < kGeometry.layers; ++layer) {
        std::set<std::int32_t> wanted;
        for (std::int32_t t = 0; t < pass.tokens; ++t) {
          const auto* row = routes.data() + (first + t) * kRow + layer * 4;
          wanted.insert(row, row + 4);
        }
        // What is here is held first, then the others come: each touched in ascending order.
        std::vector<ExpertKey> absent;
        for (const std::int32_t expert : wanted) {
          const ExpertKey key{layer, expert};
          const auto found = std::ranges::find(cold_to_hot, key);
          if (found == cold_to_hot.end()) {
            absent.push_back(key);
            continue;
          }
          ++hits;
          cold_to_hot.splice(cold_to_hot.end(), cold_to_hot, found);
        }
        for (const ExpertKey key : absent) {
          ++misses;
          if (cold_to_hot.size() == 24) {
            cold_to_hot.erase(std::ranges::find_if(cold_to_hot, [&](ExpertKey other) {
              return other.layer != layer || !wanted.contains(other.expert);
            }));
          }
          cold_to_hot.push_back(key);
        }
      }
      first += std::size_t(pass.tokens);
      decoded += std::uint64_t(pass.decoded);
    }
    const ReplayResult result = replay.result();
    EXPECT_EQ(result.counters.hits_resident, hits);
    EXPECT_EQ(result.counters.misses, misses);
    EXPECT_EQ(result.counters.bytes_moved, misses * 1000);
    EXPECT_EQ(result.tokens, decoded);
    EXPECT_EQ(result.prefill_tokens, 150 - decoded);
    EXPECT_EQ(result.tpot.count(), decoded);
    ASSERT_EQ(ends.size(), passes.size());
    EXPECT_TRUE(std::ranges::is_sorted(ends));
    EXPECT_EQ(ends.back(), result.counters.now_ns);
  }
}

TEST(Packed, OneDecodedTokenAtATimeIsDecoding) {
  const auto routes = make_routes(kGeometry, 80, true, 3);
  for (const char* policy : {"lru", "expected-next-use", "belady"}) {
    const ReplayOptions options = options_for(kGeometry, 24, policy);
    Replay replay(options);
    std::vector<std::int64_t> next;
    NextUse(kGeometry, replay.rooms(), 0).prepend(routes, 1, next);
    if (std::string(policy) != "belady") next.clear();
    std::vector<Nanos> ends;
    replay.packed({routes, {}, next}, Passes(80, {1, 1}), ends);
    const ReplayResult packed = replay.result(), decoded = decode(options, routes);
    EXPECT_EQ(packed.counters.now_ns, decoded.counters.now_ns) << policy;
    EXPECT_EQ(packed.counters.misses, decoded.counters.misses) << policy;
    EXPECT_EQ(packed.tpot.most(), decoded.tpot.most()) << policy;
  }
}

TEST(Packed, EveryDecodedTokenWaitsForItsWholePass) {
  const auto routes = make_routes(kGeometry, 9, false, 1);
  Replay replay(options_for(kGeometry, 40));
  std::vector<Nanos> ends;
  replay.packed({routes, {}, {}}, Passes{{6, 0}, {3, 2}}, ends);
  const ReplayResult result = replay.result();
  EXPECT_EQ(result.prefill_ns, ends[0]);
  EXPECT_EQ(result.tpot.count(), 2u);
  EXPECT_EQ(result.tpot.least(), ends[1] - ends[0]);
  EXPECT_EQ(result.tpot.most(), ends[1] - ends[0]);
}

TEST(Packed, RefusesPassesThatAreNotTheChunks) {
  const auto routes = make_routes(kGeometry, 4, false, 1);
  Replay replay(options_for(kGeometry, 40));
  std::vector<Nanos> ends;
  EXPECT_THROW(replay.packed({routes, {}, {}}, Passes{{3, 1}}, ends), InvalidArgument);
  EXPECT_THROW(replay.packed({routes, {}, {}}, Passes{{4, 5}}, ends), InvalidArgument);
  EXPECT_THROW(replay.packed({routes, {}, {}}, Passes{{4, -1}}, ends), InvalidArgument);
  EXPECT_THROW(replay.packed({routes, {}, {}}, Passes{{0, 0}, {4, 1}}, ends), InvalidArgument);
  EXPECT_EQ(replay.result().passes, 0u);
}

}  // namespace
}  // namespace prophet::testing
