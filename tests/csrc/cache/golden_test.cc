// Miss counts of every policy on generated traces, through the cache. A changed number is a changed
// policy: change it here only together with the text at the head of the policy.
#include <gtest/gtest.h>

#include <map>

#include "cache/cache.h"
#include "policy/traces.h"

namespace prophet::testing {
namespace {

constexpr Geometry kGeometry{6, 32, 4};
constexpr std::int32_t kTokens = 500;

std::int64_t misses(const std::string& policy, PoolScope scope, std::int32_t slots, bool skew) {
  Cache cache(kGeometry, slots, scope, make_eviction_policy(policy, kGeometry));
  std::int64_t count = 0;
  for (const Step& step : make_trace(kGeometry, kTokens, skew, 1)) {
    cache.tick(step.layer);
    std::vector<ExpertKey> missing;
    for (std::int32_t expert : step.experts) {
      const ExpertKey key{step.layer, expert};
      if (cache.state(key) == Residency::absent) {
        missing.push_back(key);
        continue;
      }
      cache.used(key);
      cache.lease(key);
    }
    for (ExpertKey key : missing) {
      EXPECT_TRUE(cache.admit(key));
      cache.used(key);
      cache.loading(key);
      cache.landed(key);
      cache.lease(key);
    }
    count += std::ssize(missing);
    for (std::int32_t expert : step.experts) cache.release({step.layer, expert});
  }
  return count;
}

// LRU once more without lists: a miss evicts the smallest of all last uses.
std::int64_t lru_misses(bool per_layer, std::int32_t slots, bool skew) {
  std::map<ExpertKey, std::int64_t> last;
  std::int64_t clock = 0, count = 0;
  for (const Step& step : make_trace(kGeometry, kTokens, skew, 1)) {
    std::vector<ExpertKey> missing;
    for (std::int32_t expert : step.experts) {
      const ExpertKey key{step.layer, expert};
      if (last.contains(key))
        last[key] = ++clock;
      else
        missing.push_back(key);
    }
    for (ExpertKey key : missing) {
      ++count;
      const auto competes = [&](const auto& entry) {
        return !per_layer || entry.first.layer == step.layer;
      };
      if (std::ranges::count_if(last, competes) >= (per_layer ? slots / kGeometry.layers : slots)) {
        auto oldest = last.end();
        for (auto it = last.begin(); it != last.end(); ++it) {
          if (competes(*it) && (oldest == last.end() || it->second < oldest->second)) oldest = it;
        }
        last.erase(oldest);
      }
      last[key] = ++clock;
    }
  }
  return count;
}

struct Golden {
  const char* policy;
  PoolScope scope;
  bool skew;
  std::int64_t quarter, half;  // misses of 12,000 accesses at 48 and 96 of 192 slots
};

constexpr PoolScope kGlobal = PoolScope::global, kPerLayer = PoolScope::per_layer;
constexpr Golden kGolden[] = {
    {"lru", kGlobal, true, 6838, 3512},
    {"lru", kPerLayer, true, 6359, 3391},
    {"lru", kGlobal, false, 9134, 6315},
    {"lfu", kGlobal, true, 8102, 4782},
    {"lfu", kPerLayer, true, 7081, 4414},
    {"lfru", kGlobal, true, 6379, 3581},
    {"lfru", kPerLayer, true, 6074, 3418},
    {"expected-next-use", kGlobal, true, 5645, 3126},
    {"expected-next-use", kPerLayer, true, 5692, 3144},
    {"expected-next-use", kGlobal, false, 8934, 6003},
};

TEST(MissCounts, AreAsWritten) {
  for (const Golden& golden : kGolden) {
    SCOPED_TRACE(std::string(golden.policy) + (golden.scope == kGlobal ? " global" : " per layer") +
                 (golden.skew ? " skewed" : " uniform"));
    EXPECT_EQ(misses(golden.policy, golden.scope, 48, golden.skew), golden.quarter);
    EXPECT_EQ(misses(golden.policy, golden.scope, 96, golden.skew), golden.half);
  }
}

TEST(MissCounts, OfLruAreThoseOfTheBruteForce) {
  for (const bool skew : {false, true}) {
    for (const std::int32_t slots : {24, 48, 96, 144}) {
      EXPECT_EQ(misses("lru", kGlobal, slots, skew), lru_misses(false, slots, skew)) << slots;
      EXPECT_EQ(misses("lru", kPerLayer, slots, skew), lru_misses(true, slots, skew)) << slots;
    }
  }
}

TEST(MissCounts, WithAllSlotsOnlyTheFirstUseMisses) {
  for (const std::string& policy : eviction_policy_names()) {
    EXPECT_EQ(misses(policy, kGlobal, 192, false), 192) << policy;
    EXPECT_EQ(misses(policy, kPerLayer, 192, false), 192) << policy;
  }
}

}  // namespace
}  // namespace prophet::testing
