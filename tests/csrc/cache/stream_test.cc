// Steps over many tokens: what they bring may not cost other steps what they need.
#include <gtest/gtest.h>

#include <set>

#include "cache/cache.h"
#include "core/error.h"
#include "policy/traces.h"

namespace prophet::testing {
namespace {

constexpr Geometry kGeometry{4, 32, 4};
constexpr std::int32_t kSlots = 48;  // six of them transient

Cache make(const std::string& policy, PoolScope scope = PoolScope::global) {
  return Cache(kGeometry, kSlots, scope, make_eviction_policy(policy, kGeometry));
}

// Serves one expert as a caller does who leases one at a time; true when it had to be brought.
bool serve(Cache& cache, ExpertKey key) {
  const bool absent = cache.state(key) == Residency::absent;
  if (absent) {
    EXPECT_TRUE(cache.admit(key));
    cache.loading(key);
    cache.landed(key);
  }
  cache.lease(key);
  cache.used(key);
  cache.release(key);
  return absent;
}

// A token's worth of each layer: 12 experts of each are in turn used.
void decode(Cache& cache, int tokens) {
  for (int token = 0; token < tokens; ++token) {
    for (std::int32_t layer = 0; layer < kGeometry.layers; ++layer) {
      cache.tick(layer);
      for (std::int32_t k = 0; k < 4; ++k) serve(cache, {layer, (token % 3) * 4 + k});
    }
  }
}

void prefill(Cache& cache, bool streams) {
  for (std::int32_t layer = 0; layer < kGeometry.layers; ++layer) {
    const std::vector<float> shares(kGeometry.experts_per_layer, 0.25f);
    streams ? cache.stream(layer, shares) : cache.tick(layer);
    for (std::int32_t e = 0; e < kGeometry.experts_per_layer; ++e) serve(cache, {layer, e});
  }
}

int resident_of_decode(const Cache& cache) {
  int count = 0;
  for (std::int32_t layer = 0; layer < kGeometry.layers; ++layer) {
    for (std::int32_t e = 0; e < 12; ++e) {
      count += cache.state({layer, e}) == Residency::resident;
    }
  }
  return count;
}

TEST(CacheStream, WhatDecodingNeedsStays) {
  for (const char* policy : {"lru", "lru-foreseen", "lfru", "least-stale"}) {
    for (const PoolScope scope : {PoolScope::global, PoolScope::per_layer}) {
      Cache with = make(policy, scope), without = make(policy, scope);
      for (Cache* cache : {&with, &without}) decode(*cache, 12);
      ASSERT_EQ(resident_of_decode(with), kSlots);
      prefill(with, true);
      prefill(without, false);
      const int pools = scope == PoolScope::global ? 1 : kGeometry.layers;
      EXPECT_GE(resident_of_decode(with), kSlots - pools * with.transient_slots(0)) << policy;
      EXPECT_LT(resident_of_decode(without), resident_of_decode(with)) << policy;
    }
  }
}

TEST(CacheStream, WhatWasStreamedGoesFirst) {
  Cache cache = make("lru");
  decode(cache, 12);
  prefill(cache, true);
  const int kept = resident_of_decode(cache);
  cache.tick(0);
  for (std::int32_t e = 12; e < 12 + cache.transient_slots(0); ++e) serve(cache, {0, e});
  EXPECT_EQ(resident_of_decode(cache), kept);
}

TEST(CacheStream, AUseByAnotherStepMakesItOrdinary) {
  Cache cache = make("lru");
  decode(cache, 12);
  const std::vector<float> shares(kGeometry.experts_per_layer, 0.5f);
  cache.stream(2, shares);
  serve(cache, {2, 30});
  serve(cache, {2, 31});
  cache.tick(2);
  serve(cache, {2, 30});
  serve(cache, {2, 20});
  EXPECT_EQ(cache.state({2, 31}), Residency::absent);
  EXPECT_EQ(cache.state({2, 30}), Residency::resident);
  serve(cache, {2, 21});  // no transient expert is left: the oldest goes
  EXPECT_EQ(cache.state({2, 30}), Residency::resident);
}

TEST(CacheStream, FreeSlotsAreNobodysLoss) {
  Cache cache = make("lru");
  prefill(cache, true);  // an empty cache keeps what came first ...
  EXPECT_EQ(cache.resident_count(), kSlots);
  const auto first_layer = [&] {
    int count = 0;
    for (std::int32_t e = 0; e < 32; ++e) {
      count += cache.state({0, e}) == Residency::resident;
    }
    return count;
  };
  EXPECT_GE(first_layer(), 32 - cache.transient_slots(0));  // ... but for the transient slots
}

TEST(CacheStream, ForecastingPoliciesChooseForThemselves) {
  // The cache names no victims for them: a step that streams evicts as any other does, given the
  // same history.
  for (const char* policy : {"expected-next-use", "belady", "lfu"}) {
    Cache a = make(policy), b = make(policy);
    for (Cache* cache : {&a, &b}) decode(*cache, 12);
    const std::vector<float> all(kGeometry.experts_per_layer, 1.0f);
    for (std::int32_t layer = 0; layer < kGeometry.layers; ++layer) {
      a.stream(layer, all);
      b.tick(layer);
      for (std::int32_t e = 0; e < kGeometry.experts_per_layer; ++e) {
        ASSERT_EQ(serve(a, {layer, e}), serve(b, {layer, e})) << policy;
      }
    }
  }
}

TEST(CacheStream, AnExpertThatFewTokensOfAPromptUsedIsNotExpectedSoon) {
  const auto used_by = [](float share) {
    Cache cache = make("expected-next-use");
    decode(cache, 12);
    std::vector<float> shares(kGeometry.experts_per_layer, 0.9f);
    shares[0] = share;
    cache.stream(0, shares);
    for (std::int32_t e = 0; e < 12; ++e) serve(cache, {0, e});
    for (std::int32_t layer = 1; layer < kGeometry.layers; ++layer) {  // the others' history: equal
      cache.stream(layer, std::vector<float>(kGeometry.experts_per_layer, 0.9f));
      for (std::int32_t e = 0; e < 12; ++e) serve(cache, {layer, e});
    }
    cache.tick(0);
    serve(cache, {0, 12});
    return cache.state({0, 0});
  };
  EXPECT_EQ(used_by(0.01f), Residency::absent);
  EXPECT_EQ(used_by(1.0f), Residency::resident);
}

TEST(CacheStream, RefusesSharesThatAreNotOneForEachExpert) {
  Cache cache = make("lru");
  EXPECT_THROW(cache.stream(0, std::vector<float>(31)), InvalidArgument);
  EXPECT_THROW(cache.stream(4, std::vector<float>(32)), InvalidArgument);
  EXPECT_THROW(cache.transient_slots(-1), InvalidArgument);
}

// Random steps of both kinds: an ordinary expert leaves in a step that streams only while fewer
// transient ones than may stand are there to go.
TEST(CacheStream, RandomStepsLoseAtMostTheTransientSlots) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    Cache cache = make("lru");
    Lcg random(seed);
    std::set<ExpertKey> ordinary;  // by a model of the contract
    for (int step = 0; step < 400; ++step) {
      const auto layer = static_cast<std::int32_t>(random.below(kGeometry.layers));
      const bool streams = random.below(3) == 0;
      streams ? cache.stream(layer, std::vector<float>(kGeometry.experts_per_layer, 0.1f))
              : cache.tick(layer);
      const std::uint32_t count = streams ? 30 : 4;
      for (std::uint32_t i = 0; i < count; ++i) {
        const ExpertKey key{layer, static_cast<std::int32_t>(random.below(32))};
        const int before = cache.resident_count();
        const bool brought = serve(cache, key);
        if (!streams || (brought && before < kSlots)) ordinary.insert(key);
        std::size_t lost = 0;
        for (auto at = ordinary.begin(); at != ordinary.end();) {
          const bool gone = cache.state(*at) == Residency::absent;
          lost += gone;
          at = gone ? ordinary.erase(at) : std::next(at);
        }
        ASSERT_LE(lost, 1u);
        const std::size_t transient = std::size_t(cache.resident_count()) - ordinary.size();
        if (lost == 1 && !streams) {
          ASSERT_EQ(transient, 0u) << "a transient expert goes first";
        }
        ASSERT_LE(transient, std::size_t(cache.transient_slots(layer)));
      }
    }
  }
}

}  // namespace
}  // namespace prophet::testing
