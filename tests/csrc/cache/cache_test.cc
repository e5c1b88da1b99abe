#include "cache/cache.h"

#include <gmock/gmock.h>

#include "core/error.h"

namespace prophet {
namespace {

constexpr Geometry kGeometry{3, 8, 2};

Cache make_cache(std::int32_t slots, PoolScope scope = PoolScope::global,
                 const Geometry& geometry = kGeometry) {
  return Cache(geometry, slots, scope, make_eviction_policy("lru", geometry));
}

void bring(Cache& cache, ExpertKey key) {
  ASSERT_TRUE(cache.admit(key));
  cache.loading(key);
  cache.landed(key);
}

// Puts the expert into a state by the shortest legal way.
void put(Cache& cache, ExpertKey key, Residency state) {
  if (state == Residency::absent) return;
  ASSERT_TRUE(cache.admit(key));
  if (state == Residency::queued) return;
  cache.loading(key);
  if (state == Residency::loading) return;
  cache.landed(key);
  if (state == Residency::leased) cache.lease(key);
}

TEST(Cache, WalksThroughItsStates) {
  Cache cache = make_cache(4);
  const ExpertKey key{1, 3};
  EXPECT_EQ(cache.state(key), Residency::absent);
  EXPECT_EQ(cache.slot(key), -1);
  const auto placement = cache.admit(key);
  ASSERT_TRUE(placement);
  EXPECT_FALSE(placement->evicted);
  EXPECT_EQ(cache.slot(key), placement->slot);
  EXPECT_EQ(cache.state(key), Residency::queued);
  cache.loading(key);
  EXPECT_EQ(cache.state(key), Residency::loading);
  EXPECT_EQ(cache.resident_count(), 0);
  cache.landed(key);
  EXPECT_EQ(cache.state(key), Residency::resident);
  EXPECT_EQ(cache.resident_count(), 1);
  cache.lease(key);
  cache.lease(key);
  EXPECT_EQ(cache.state(key), Residency::leased);
  EXPECT_EQ(cache.resident_count(), 1);
  cache.release(key);
  EXPECT_EQ(cache.state(key), Residency::leased);
  cache.release(key);
  EXPECT_EQ(cache.state(key), Residency::resident);
  EXPECT_EQ(cache.slot(key), placement->slot);
  cache.drop(key);
  EXPECT_EQ(cache.state(key), Residency::absent);
  EXPECT_EQ(cache.slot(key), -1);
  EXPECT_EQ(cache.resident_count(), 0);
}

TEST(Cache, RefusesEveryIllegalStepAndSaysWhy) {
  using enum Residency;
  struct Case {
    const char* name;
    void (*step)(Cache&, ExpertKey);
    std::vector<Residency> legal;
  };
  const Case cases[] = {
      {"admit", [](Cache& cache, ExpertKey key) { (void)cache.admit(key); }, {absent}},
      {"loading", [](Cache& cache, ExpertKey key) { cache.loading(key); }, {queued}},
      {"landed", [](Cache& cache, ExpertKey key) { cache.landed(key); }, {loading}},
      {"abandon", [](Cache& cache, ExpertKey key) { cache.abandon(key); }, {queued, loading}},
      {"drop", [](Cache& cache, ExpertKey key) { cache.drop(key); }, {resident}},
      {"used",
       [](Cache& cache, ExpertKey key) { cache.used(key); },
       {queued, loading, resident, leased}},
      {"lease", [](Cache& cache, ExpertKey key) { cache.lease(key); }, {resident, leased}},
      {"release", [](Cache& cache, ExpertKey key) { cache.release(key); }, {leased}},
  };
  const std::pair<Residency, const char*> states[] = {{absent, "absent"},
                                                      {queued, "queued"},
                                                      {loading, "loading"},
                                                      {resident, "resident"},
                                                      {leased, "leased"}};
  for (const Case& item : cases) {
    for (const auto& [state, word] : states) {
      Cache cache = make_cache(4);
      const ExpertKey key{2, 5};
      put(cache, key, state);
      ASSERT_EQ(cache.state(key), state);
      const std::int32_t slot = cache.slot(key);
      if (std::ranges::find(item.legal, state) != item.legal.end()) {
        EXPECT_NO_THROW(item.step(cache, key)) << item.name << " when " << word;
        continue;
      }
      try {
        item.step(cache, key);
        ADD_FAILURE() << item.name << " was allowed when " << word;
      } catch (const StateError& error) {
        EXPECT_THAT(error.what(), ::testing::HasSubstr("expert 5 of layer 2"));
        EXPECT_THAT(error.what(), ::testing::HasSubstr(std::string("it is ") + word));
      }
      EXPECT_EQ(cache.state(key), state) << item.name << " changed the state";
      EXPECT_EQ(cache.slot(key), slot);
    }
  }
}

TEST(Cache, RefusesExpertsThatDoNotExist) {
  Cache cache = make_cache(4);
  for (const ExpertKey key : {ExpertKey{-1, 0}, {3, 0}, {0, -1}, {0, 8}}) {
    EXPECT_THROW(cache.state(key), InvalidArgument);
    EXPECT_THROW(cache.slot(key), InvalidArgument);
    EXPECT_THROW((void)cache.admit(key), InvalidArgument);
    EXPECT_THROW(cache.used(key), InvalidArgument);
    EXPECT_THROW(cache.lease(key), InvalidArgument);
  }
  for (const std::int32_t layer : {-1, 3}) {
    EXPECT_THROW(cache.tick(layer), InvalidArgument);
    EXPECT_THROW(cache.pool_slots(layer), InvalidArgument);
  }
}

TEST(Cache, RefusesPoolsThatCannotServeOneToken) {
  EXPECT_THROW(make_cache(1), InvalidArgument);
  EXPECT_THROW(make_cache(-5), InvalidArgument);
  EXPECT_NO_THROW(make_cache(2));
  EXPECT_NO_THROW(make_cache(6, PoolScope::per_layer));
  try {
    make_cache(5, PoolScope::per_layer);  // layers get 2, 2, 1
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("at least 6 slots"));
  }
  EXPECT_THROW(make_cache(4, PoolScope::global, {0, 8, 2}), InvalidArgument);
  EXPECT_THROW(Cache(kGeometry, 4, PoolScope::global, nullptr), InvalidArgument);
}

TEST(Cache, DividesSlotsAmongLayers) {
  Cache cache = make_cache(11, PoolScope::per_layer);
  EXPECT_EQ(cache.slots(), 11);
  EXPECT_EQ(cache.pool_slots(0), 4);
  EXPECT_EQ(cache.pool_slots(1), 4);
  EXPECT_EQ(cache.pool_slots(2), 3);
  for (std::int32_t e = 0; e < 3; ++e) bring(cache, {2, e});
  // Layer 2 is full although other layers have room.
  const auto placement = cache.admit({2, 7});
  ASSERT_TRUE(placement);
  EXPECT_EQ(placement->evicted, (ExpertKey{2, 0}));
}

TEST(Cache, UsesNoMoreSlotsThanThereAreExperts) {
  EXPECT_EQ(make_cache(1000).slots(), 24);
  EXPECT_EQ(make_cache(1000).pool_slots(1), 24);
  EXPECT_EQ(make_cache(1000, PoolScope::per_layer).slots(), 24);
  EXPECT_EQ(make_cache(23, PoolScope::per_layer).pool_slots(2), 7);
}

TEST(Cache, AnyLayerMayUseTheGlobalPool) {
  Cache cache = make_cache(2);
  bring(cache, {0, 0});
  bring(cache, {0, 1});
  const auto placement = cache.admit({2, 0});
  ASSERT_TRUE(placement);
  EXPECT_EQ(placement->evicted, (ExpertKey{0, 0}));
}

TEST(Cache, AdmitsNothingWhenEverySlotIsHeld) {
  for (const Residency state : {Residency::queued, Residency::loading, Residency::leased}) {
    Cache cache = make_cache(2);
    put(cache, {0, 0}, state);
    put(cache, {1, 0}, state);
    EXPECT_FALSE(cache.admit({2, 0}));
    EXPECT_EQ(cache.state({2, 0}), Residency::absent);
  }
}

TEST(Cache, AnAbandonedOrDroppedSlotIsFreeAgain) {
  Cache cache = make_cache(2);
  bring(cache, {0, 0});
  ASSERT_TRUE(cache.admit({0, 1}));
  const std::int32_t slot = cache.slot({0, 1});
  cache.abandon({0, 1});
  auto placement = cache.admit({1, 1});
  ASSERT_TRUE(placement);
  EXPECT_EQ(placement->slot, slot);
  EXPECT_FALSE(placement->evicted);
  cache.drop({0, 0});
  EXPECT_FALSE(cache.admit({1, 2})->evicted);
}

// A policy that may refuse, or name what must not go.
class Fixed : public EvictionPolicy {
 public:
  explicit Fixed(std::optional<ExpertKey> choice) : choice_(choice) {}
  std::string name() const override { return "fixed"; }
  void arrived(ExpertKey) override {}
  void used(ExpertKey) override {}
  void left(ExpertKey) override {}
  std::optional<ExpertKey> victim(const CacheView&, ExpertKey) const override { return choice_; }

 private:
  std::optional<ExpertKey> choice_;
};

TEST(Cache, APolicyMayRefuse) {
  Cache cache(kGeometry, 2, PoolScope::global, std::make_unique<Fixed>(std::nullopt));
  bring(cache, {0, 0});
  bring(cache, {0, 1});
  EXPECT_FALSE(cache.admit({1, 0}));
  EXPECT_EQ(cache.state({0, 0}), Residency::resident);
}

// Yields to the wishes of odd experts alone, and notes who was asked about whom.
class Picky final : public EvictionPolicy {
 public:
  explicit Picky(std::vector<std::pair<ExpertKey, ExpertKey>>& asked) : asked_(asked) {}
  std::string name() const override { return "picky"; }
  void arrived(ExpertKey) override {}
  void used(ExpertKey) override {}
  void left(ExpertKey) override {}
  std::optional<ExpertKey> victim(const CacheView& view, ExpertKey) const override {
    for (std::int32_t at = 0; at < kGeometry.total(); ++at) {
      if (view.evictable(kGeometry.key(at))) return kGeometry.key(at);
    }
    return std::nullopt;
  }
  bool yields(ExpertKey victim, const Prefetch& wish) const override {
    asked_.emplace_back(victim, wish.key);
    return wish.key.expert % 2 == 1;
  }

 private:
  std::vector<std::pair<ExpertKey, ExpertKey>>& asked_;
};

TEST(Cache, AWishTakesAFreeSlotOrThatOfOneThatYields) {
  std::vector<std::pair<ExpertKey, ExpertKey>> asked;
  Cache cache(kGeometry, 3, PoolScope::global, std::make_unique<Picky>(asked));
  const auto wish = [&](ExpertKey key) { return cache.admit_wish({key, .5f, 1}); };
  ASSERT_TRUE(wish({2, 0}));  // free: nobody is asked
  cache.loading({2, 0});
  cache.landed({2, 0});
  bring(cache, {0, 0});
  bring(cache, {0, 1});
  EXPECT_TRUE(asked.empty());
  cache.lease({0, 0});
  EXPECT_FALSE(wish({1, 2}));
  EXPECT_EQ(cache.state({1, 2}), Residency::absent);  // refused: nothing has changed
  EXPECT_EQ(cache.state({0, 1}), Residency::resident);
  EXPECT_EQ(asked.back(), (std::pair{ExpertKey{0, 1}, ExpertKey{1, 2}}));
  const auto placement = wish({1, 3});
  ASSERT_TRUE(placement);
  EXPECT_EQ(placement->evicted, (ExpertKey{0, 1}));
  EXPECT_EQ(cache.state({1, 3}), Residency::queued);
  EXPECT_EQ(asked.size(), 2u);
  // A demand asks nobody.
  EXPECT_EQ(cache.admit({1, 2})->evicted, (ExpertKey{2, 0}));
  EXPECT_EQ(asked.size(), 2u);
  EXPECT_FALSE(wish({1, 5}));  // leased, queued, queued
  EXPECT_THROW(wish({1, 3}), StateError);
  EXPECT_THROW(wish({9, 3}), InvalidArgument);
}

TEST(Cache, RefusesAVictimThatMayNotGo) {
  for (const ExpertKey wrong : {ExpertKey{0, 1}, {2, 2}, {9, 9}, {0, -1}}) {
    Cache cache(kGeometry, 2, PoolScope::global, std::make_unique<Fixed>(wrong));
    bring(cache, {0, 0});
    bring(cache, {0, 1});
    cache.lease({0, 1});
    EXPECT_THROW((void)cache.admit({1, 0}), StateError);
    EXPECT_EQ(cache.state({0, 1}), Residency::leased);
    EXPECT_EQ(cache.state({1, 0}), Residency::absent);
  }
  Cache cache(kGeometry, 6, PoolScope::per_layer, std::make_unique<Fixed>(ExpertKey{0, 0}));
  for (const ExpertKey key : {ExpertKey{0, 0}, {1, 0}, {1, 1}}) bring(cache, key);
  EXPECT_THROW((void)cache.admit({1, 2}), StateError);  // of another layer's pool
}

TEST(Cache, ThePolicyHearsUsesAndTicks) {
  Cache cache = make_cache(2);
  bring(cache, {0, 0});
  bring(cache, {0, 1});
  cache.tick(0);
  cache.used({0, 0});
  EXPECT_EQ(cache.admit({0, 2})->evicted, (ExpertKey{0, 1}));
  EXPECT_EQ(cache.policy().name(), "lru");
}

}  // namespace
}  // namespace prophet
