// Random walks over all legal calls, every policy and both pools, against a model of maps.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "cache/cache.h"
#include "policy/traces.h"

namespace prophet::testing {
namespace {

constexpr Geometry kGeometry{3, 6, 2};

struct Stay {
  Residency state;
  std::int32_t slot;
  int leases = 0;
};

class Walk {
 public:
  Walk(const std::string& policy, PoolScope scope, std::int32_t slots, std::uint64_t seed)
      : scope_(scope),
        cache_(kGeometry, slots, scope, make_eviction_policy(policy, kGeometry)),
        random_(seed) {}

  void step() {
    const ExpertKey key =
        kGeometry.key(static_cast<std::int32_t>(random_.below(kGeometry.total())));
    const std::uint32_t dice = random_.below(8);
    if (dice == 0 && random_.below(2) == 0) return cache_.tick(key.layer);
    if (dice == 0) return cache_.stream(key.layer, std::vector<float>(6, 0.5f));
    const auto found = stays_.find(key);
    if (found == stays_.end()) return admit(key);
    Stay& stay = found->second;
    if (dice == 1) return cache_.used(key);
    switch (stay.state) {
      case Residency::queued:
      case Residency::loading:
        if (dice == 2) {
          cache_.abandon(key);
          stays_.erase(found);
        } else if (stay.state == Residency::queued) {
          cache_.loading(key);
          stay.state = Residency::loading;
        } else {
          cache_.landed(key);
          stay.state = Residency::resident;
        }
        return;
      case Residency::resident:
        if (dice == 2) {
          cache_.drop(key);
          stays_.erase(found);
          return;
        }
        [[fallthrough]];
      default:
        if (stay.leases > 0 && dice < 6) {
          cache_.release(key);
          --stay.leases;
        } else {
          cache_.lease(key);
          ++stay.leases;
        }
        stay.state = stay.leases > 0 ? Residency::leased : Residency::resident;
    }
  }

  void check() const {
    std::set<std::int32_t> slots;
    int resident = 0;
    for (std::int32_t at = 0; at < kGeometry.total(); ++at) {
      const ExpertKey key = kGeometry.key(at);
      const auto found = stays_.find(key);
      if (found == stays_.end()) {
        ASSERT_EQ(cache_.state(key), Residency::absent);
        ASSERT_EQ(cache_.slot(key), -1);
        continue;
      }
      const Stay& stay = found->second;
      ASSERT_EQ(cache_.state(key), stay.state);
      ASSERT_EQ(cache_.slot(key), stay.slot);
      ASSERT_TRUE(slots.insert(stay.slot).second) << "slot " << stay.slot << " is shared";
      ASSERT_GE(stay.slot, 0);
      ASSERT_LT(stay.slot, cache_.slots());
      resident += stay.state == Residency::resident || stay.state == Residency::leased;
    }
    ASSERT_EQ(cache_.resident_count(), resident);
  }

  int evictions() const { return evictions_; }
  int refusals() const { return refusals_; }

 private:
  bool same_pool(ExpertKey a, ExpertKey b) const {
    return scope_ == PoolScope::global || a.layer == b.layer;
  }

  void admit(ExpertKey key) {
    int held = 0, evictable = 0;
    for (const auto& [other, stay] : stays_) {
      held += same_pool(key, other);
      evictable += same_pool(key, other) && stay.state == Residency::resident;
    }
    const bool room = held < cache_.pool_slots(key.layer);
    const auto placement = cache_.admit(key);
    ASSERT_EQ(placement.has_value(), room || evictable > 0);
    if (!placement) {
      ++refusals_;
      return;
    }
    ASSERT_EQ(placement->evicted.has_value(), !room) << "a free slot goes first";
    if (placement->evicted) {
      const auto gone = stays_.find(*placement->evicted);
      ASSERT_NE(gone, stays_.end());
      ASSERT_EQ(gone->second.state, Residency::resident) << "only a resident expert may be evicted";
      ASSERT_TRUE(same_pool(key, *placement->evicted));
      ASSERT_EQ(gone->second.slot, placement->slot);
      stays_.erase(gone);
      ++evictions_;
    }
    stays_[key] = {Residency::queued, placement->slot};
  }

  const PoolScope scope_;
  Cache cache_;
  Lcg random_;
  std::map<ExpertKey, Stay> stays_;
  int evictions_ = 0;
  int refusals_ = 0;
};

TEST(CacheProperty, RandomWalksAgreeWithAModel) {
  for (const std::string& policy : eviction_policy_names()) {
    for (const PoolScope scope : {PoolScope::global, PoolScope::per_layer}) {
      int evictions = 0, refusals = 0;
      for (std::uint64_t seed = 0; seed < 6; ++seed) {
        Walk walk(policy, scope, 6 + static_cast<std::int32_t>(seed), seed);
        for (int i = 0; i < 3000; ++i) {
          walk.step();
          walk.check();
          ASSERT_FALSE(::testing::Test::HasFatalFailure()) << policy << " seed " << seed;
        }
        evictions += walk.evictions();
        refusals += walk.refusals();
      }
      EXPECT_GT(evictions, 500) << policy;  // the walk met both
      EXPECT_GT(refusals, 50) << policy;
    }
  }
}

}  // namespace
}  // namespace prophet::testing
