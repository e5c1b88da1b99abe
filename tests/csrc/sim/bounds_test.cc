// Miss counts of replays against models that share no code with them, and the clairvoyant as a
// bound.
#include <gmock/gmock.h>

#include <map>
#include <set>

#include "policy/policy_conformance.h"
#include "sim/sim_fixture.h"

namespace prophet::testing {
namespace {

INSTANTIATE_TEST_SUITE_P(Bound, PolicyConformance,
                         ::testing::Values(Enrolled{"belady", [](const Geometry& geometry) {
                                                      return make_eviction_policy("belady",
                                                                                  geometry);
                                                    }}));

constexpr Geometry kGeometry{6, 32, 4};
constexpr PoolScope kGlobal = PoolScope::global, kPerLayer = PoolScope::per_layer;

// The set of each layer step, ascending, with its layer.
std::vector<std::set<ExpertKey>> sets_of(const Geometry& g,
                                         const std::vector<std::int32_t>& routes) {
  std::vector<std::set<ExpertKey>> sets(routes.size() / g.top_k);
  for (std::size_t i = 0; i < routes.size(); ++i) {
    const std::size_t step = i / g.top_k;
    sets[step].insert({static_cast<std::int32_t>(step) % g.layers, routes[i]});
  }
  return sets;
}

// Misses when the victim is the one of least `worth` among those not in the running set; per layer
// only those of its layer.
template <typename Worth>
std::int64_t brute_force(const std::vector<std::set<ExpertKey>>& sets, std::int32_t slots,
                         std::int32_t per_layer_of, Worth worth) {
  std::set<ExpertKey> here;
  std::int64_t count = 0;
  for (std::size_t step = 0; step < sets.size(); ++step) {
    std::vector<ExpertKey> absent;
    for (ExpertKey key : sets[step]) {
      if (!here.contains(key)) absent.push_back(key);
    }
    for (ExpertKey key : absent) {
      ++count;
      std::vector<ExpertKey> pool;
      for (ExpertKey other : here) {
        if (per_layer_of == 0 || other.layer == key.layer) pool.push_back(other);
      }
      if (std::ssize(pool) >= (per_layer_of ? slots / per_layer_of : slots)) {
        std::erase_if(pool, [&](ExpertKey other) { return sets[step].contains(other); });
        here.erase(*std::min_element(pool.begin(), pool.end(), [&](ExpertKey a, ExpertKey b) {
          return worth(a, step) < worth(b, step);
        }));
      }
      here.insert(key);
    }
  }
  return count;
}

std::int64_t belady_by_hand(const std::vector<std::set<ExpertKey>>& sets, std::int32_t slots,
                            std::int32_t per_layer_of) {
  std::map<ExpertKey, std::vector<std::int64_t>> uses;
  for (std::size_t step = 0; step < sets.size(); ++step) {
    for (ExpertKey key : sets[step]) uses[key].push_back(std::int64_t(step));
  }
  return brute_force(sets, slots, per_layer_of, [&](ExpertKey key, std::size_t step) {
    const auto& all = uses[key];
    const auto next = std::upper_bound(all.begin(), all.end(), std::int64_t(step));
    return next == all.end() ? -INT64_MAX : -*next;
  });
}

// Least recently used by (step, hit before miss, expert): the order in which a layer asks.
std::int64_t lru_by_hand(const std::vector<std::set<ExpertKey>>& sets, std::int32_t slots,
                         std::int32_t per_layer_of) {
  std::map<ExpertKey, std::int64_t> last;
  std::set<ExpertKey> here;
  std::int64_t clock = 0, count = 0;
  for (const auto& set : sets) {
    std::vector<ExpertKey> absent;
    for (ExpertKey key : set) {
      if (here.contains(key)) {
        last[key] = ++clock;
      } else {
        absent.push_back(key);
      }
    }
    for (ExpertKey key : absent) {
      ++count;
      std::optional<ExpertKey> oldest;
      std::int32_t held = 0;
      for (ExpertKey other : here) {
        if (per_layer_of != 0 && other.layer != key.layer) continue;
        ++held;
        if (!oldest || last[other] < last[*oldest]) oldest = other;
      }
      if (held >= (per_layer_of ? slots / per_layer_of : slots)) here.erase(*oldest);
      here.insert(key);
      last[key] = ++clock;
    }
  }
  return count;
}

TEST(ReplayedMisses, OfLruAndBeladyAreThoseOfTheBruteForce) {
  for (const bool skew : {false, true}) {
    const auto routes = make_routes(kGeometry, 120, skew, 3);
    const auto sets = sets_of(kGeometry, routes);
    for (const std::int32_t slots : {24, 48, 96, 144, 192}) {
      SCOPED_TRACE(std::to_string(slots) + (skew ? " skewed" : " uniform"));
      EXPECT_EQ(misses(options_for(kGeometry, slots, "lru", kGlobal), routes),
                lru_by_hand(sets, slots, 0));
      EXPECT_EQ(misses(options_for(kGeometry, slots, "lru", kPerLayer), routes),
                lru_by_hand(sets, slots, kGeometry.layers));
      EXPECT_EQ(misses(options_for(kGeometry, slots, "belady", kGlobal), routes),
                belady_by_hand(sets, slots, 0));
      EXPECT_EQ(misses(options_for(kGeometry, slots, "belady", kPerLayer), routes),
                belady_by_hand(sets, slots, kGeometry.layers));
    }
  }
}

TEST(Belady, NeverMissesMoreThanAnyPolicyWithEqualSlots) {
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    Lcg random(seed);
    const Geometry g{1 + std::int32_t(random.below(5)), 6 + std::int32_t(random.below(20)),
                     1 + std::int32_t(random.below(4))};
    const auto routes = make_routes(g, 150, seed % 2 == 0, seed);
    const std::int32_t least = g.top_k * g.layers;
    const auto slots = least + std::int32_t(random.below(std::uint32_t(g.total() - least + 1)));
    const std::int64_t bound = misses(options_for(g, slots, "belady", kGlobal), routes);
    EXPECT_LE(bound, misses(options_for(g, slots, "belady", kPerLayer), routes));
    for (const std::string& policy : eviction_policy_names()) {
      for (const PoolScope pool : {kGlobal, kPerLayer}) {
        EXPECT_LE(bound, misses(options_for(g, slots, policy, pool), routes))
            << policy << " seed " << seed;
      }
      EXPECT_LE(misses(options_for(g, slots, "belady", kPerLayer), routes),
                misses(options_for(g, slots, policy, kPerLayer), routes));
    }
  }
}

// The fewest misses of any choice of victims: all of them tried, cache by cache.
std::int64_t fewest(const std::vector<std::set<ExpertKey>>& sets, std::size_t slots) {
  std::map<std::set<ExpertKey>, std::int64_t> caches = {{{}, 0}};
  for (const auto& set : sets) {
    std::map<std::set<ExpertKey>, std::int64_t> after;
    for (const auto& [cache, count] : caches) {
      std::int64_t cost = count;
      std::vector<std::set<ExpertKey>> reached = {set};
      for (ExpertKey key : set) cost += !cache.contains(key);
      for (ExpertKey key : cache) {  // keep any of the others, as many as fit
        if (set.contains(key)) continue;
        for (std::size_t i = reached.size(); i-- > 0;) {
          if (reached[i].size() == slots) continue;
          reached.push_back(reached[i]);
          reached.back().insert(key);
        }
      }
      for (const auto& next : reached) {
        const auto [at, fresh] = after.try_emplace(next, cost);
        if (!fresh) at->second = std::min(at->second, cost);
      }
    }
    caches = std::move(after);
  }
  std::int64_t best = INT64_MAX;
  for (const auto& [cache, count] : caches) best = std::min(best, count);
  return best;
}

TEST(Belady, IsTheFewestMissesOfAnyChoice) {
  constexpr Geometry tiny{2, 5, 2};
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const auto routes = make_routes(tiny, 10, seed % 2 == 0, seed);
    for (const std::int32_t slots : {4, 5, 7}) {
      EXPECT_EQ(misses(options_for(tiny, slots, "belady", kGlobal), routes),
                fewest(sets_of(tiny, routes), std::size_t(slots)))
          << "seed " << seed << " slots " << slots;
    }
  }
}

TEST(Belady, IsABoundForPassesInWavesToo) {
  constexpr Geometry small{2, 12, 2};
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const auto routes = make_routes(small, 90, seed % 2 == 0, seed);
    for (const std::int32_t slots : {6, 10}) {
      const auto bound = decode(options_for(small, slots, "belady", kGlobal), routes, 30);
      EXPECT_GT(bound.counters.waves, bound.counters.layer_steps);
      for (const std::string& policy : eviction_policy_names()) {
        const auto other = decode(options_for(small, slots, policy, kGlobal), routes, 30);
        EXPECT_LE(bound.counters.misses, other.counters.misses) << policy << " seed " << seed;
      }
    }
  }
}

TEST(Belady, WithoutKnowledgeStillServes) {
  const auto routes = make_routes(kGeometry, 50, true, 1);
  Replay replay(options_for(kGeometry, 48, "belady"));
  replay.decode({routes, {}, {}});
  EXPECT_GT(replay.result().counters.misses, 0u);
}

TEST(NextUse, IsTheSearchForwardInWhateverChunks) {
  constexpr Geometry g{3, 9, 2};
  const auto routes = make_routes(g, 40, true, 9);
  const std::vector<std::int32_t> rooms(g.layers, g.experts_per_layer);
  const std::size_t row = std::size_t(g.layers) * g.top_k;
  const auto sets = sets_of(g, routes);
  std::vector<std::int64_t> expected;
  for (std::size_t step = 0; step < sets.size(); ++step) {
    for (ExpertKey key : sets[step]) {
      std::size_t next = step + 1;
      while (next < sets.size() && !sets[next].contains(key)) ++next;
      expected.push_back(next < sets.size() ? std::int64_t(next) : NextUse::kNever);
    }
  }
  for (const std::size_t chunk : {1u, 7u, 40u}) {
    NextUse backward(g, rooms, std::int64_t(sets.size()));
    std::vector<std::int64_t> found;
    for (std::size_t end = 40; end > 0;) {
      const std::size_t begin = end - std::min(chunk, end);
      std::vector<std::int64_t> part;
      backward.prepend({routes.data() + begin * row, (end - begin) * row}, 1, part);
      found.insert(found.begin(), part.begin(), part.end());
      end = begin;
    }
    EXPECT_EQ(found, expected) << "chunks of " << chunk;
  }
}

}  // namespace
}  // namespace prophet::testing
