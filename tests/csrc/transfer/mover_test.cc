// What prefetches have cost and saved, as the mover tells it, against a model that keeps lists.
#include "transfer/mover.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "device/manual/manual_backend.h"
#include "store/synthetic_store.h"

namespace prophet {
namespace {

constexpr Geometry kGeometry{2, 8, 2};
constexpr std::uint64_t kBytes = 1000, kChunk = 250;

struct Bench {
  explicit Bench(std::int32_t slots, const char* policy = "lru", std::uint64_t seed = 1)
      : backend({.seed = seed}),
        store(kGeometry, kBytes),
        cache(kGeometry, slots, PoolScope::global, make_eviction_policy(policy, kGeometry)) {
    backend.open({"virtual"});
    mover.emplace(store, backend, cache, backend.fast_memory(slots * kBytes), recorder,
                  MoverOptions{kChunk, 2});
  }

  void collect() {
    ended.clear();
    mover->collect(ended);
  }
  void land_all() {
    do {
      backend.land_all();
      collect();
      mover->start_wishes();
    } while (!backend.pending().empty());
  }
  void wish(std::vector<ExpertKey> keys) {
    std::vector<Prefetch> wanted;
    for (ExpertKey key : keys) wanted.push_back({key, 1, 1});
    mover->want(wanted);
    mover->start_wishes();
  }
  void bring_early(ExpertKey key) {
    wish({key});
    land_all();
    ASSERT_EQ(cache.state(key), Residency::resident);
  }
  void use(ExpertKey key) {
    if (cache.state(key) == Residency::absent) ASSERT_TRUE(mover->demand(key));
    land_all();
    cache.used(key);
    mover->used(key);
  }
  std::vector<ExpertKey> displaced() const {
    std::vector<ExpertKey> out;
    for (std::int32_t at = 0; at < kGeometry.total(); ++at) {
      if (mover->displaced(kGeometry.key(at))) out.push_back(kGeometry.key(at));
    }
    return out;
  }

  ManualBackend backend;
  SyntheticStore store;
  Cache cache;
  Recorder recorder;
  std::optional<Mover> mover;
  std::vector<Mover::Ending> ended;
};

using Keys = std::vector<ExpertKey>;

TEST(Mover, AnExpertDisplacedByAWishCountsUntilADemandWouldHaveTakenTheSlot) {
  Bench bench(2);
  bench.use({0, 0});
  bench.use({0, 1});
  EXPECT_EQ(bench.displaced(), Keys{});
  bench.bring_early({1, 5});
  EXPECT_EQ(bench.displaced(), (Keys{{0, 0}}));
  bench.use({0, 3});  // takes the slot of {0, 1}, which would have been {0, 0}'s
  EXPECT_EQ(bench.displaced(), Keys{});
}

TEST(Mover, AWishForAFreeSlotDisplacesNobodyAndADemandNeverDoes) {
  Bench bench(2);
  bench.use({0, 0});
  bench.bring_early({1, 5});
  EXPECT_EQ(bench.displaced(), Keys{});
  bench.use({0, 1});
  bench.use({0, 2});
  EXPECT_EQ(bench.displaced(), Keys{});
}

TEST(Mover, WhatComesBackIsNotDisplacedAnyMore) {
  Bench bench(2);
  bench.use({0, 0});
  bench.use({0, 1});
  bench.bring_early({1, 5});
  bench.bring_early({0, 0});  // in the place of {0, 1}
  EXPECT_EQ(bench.displaced(), (Keys{{0, 1}}));
}

// The list of the displaced is in the order of their last departure.
TEST(Mover, DisplacedTwiceCountsFromTheSecondTime) {
  Bench bench(3);
  for (std::int32_t e = 0; e < 3; ++e) bench.use({0, e});
  bench.bring_early({1, 0});  // {0, 0} goes
  bench.bring_early({1, 1});  // {0, 1} goes
  bench.bring_early({0, 0});  // {0, 2} goes
  bench.use({1, 0});          // brought early and used: a demand would have needed a slot, {0, 1}'s
  EXPECT_EQ(bench.displaced(), (Keys{{0, 2}}));
  bench.bring_early({1, 2});  // {1, 1} goes
  bench.bring_early({1, 3});  // {0, 0} goes, for the second time
  EXPECT_EQ(bench.displaced(), (Keys{{0, 0}, {0, 2}, {1, 1}}));
  bench.use({1, 2});
  EXPECT_EQ(bench.displaced(), (Keys{{0, 0}, {1, 1}}));
  bench.use({1, 3});
  EXPECT_EQ(bench.displaced(), (Keys{{0, 0}}));
}

TEST(Mover, APrefetchIsUsedOnce) {
  Bench bench(3);
  bench.bring_early({1, 5});
  EXPECT_EQ(bench.mover->unused_bytes(), kBytes);
  EXPECT_TRUE(bench.mover->used({1, 5}));
  EXPECT_FALSE(bench.mover->used({1, 5}));
  EXPECT_FALSE(bench.mover->used({1, 4}));
  EXPECT_EQ(bench.mover->unused_bytes(), 0u);
  EXPECT_EQ(bench.recorder.totals(EventKind::prefetch_used).count, 1u);
  EXPECT_EQ(bench.recorder.totals(EventKind::prefetch_used).bytes, kBytes);
}

TEST(Mover, OvertakenAreTheBytesThatWereMovedOrOnTheLink) {
  Bench bench(4);
  bench.wish({{1, 5}});
  ASSERT_TRUE(bench.mover->demand({1, 5}));  // two chunks are on the link
  EXPECT_EQ(bench.mover->overtaken_bytes(), 2 * kChunk);
  ASSERT_TRUE(bench.mover->demand({1, 5}));  // demanded again: counted once
  EXPECT_EQ(bench.mover->overtaken_bytes(), 2 * kChunk);
  bench.land_all();
  EXPECT_EQ(bench.recorder.totals(EventKind::prefetch_late).bytes, kBytes);

  bench.wish({{1, 6}});
  bench.backend.land(bench.backend.pending().front().ticket);
  bench.collect();
  bench.mover->start_wishes();  // one landed, two on the link
  ASSERT_TRUE(bench.mover->demand({1, 6}));
  EXPECT_EQ(bench.mover->overtaken_bytes(), 5 * kChunk);
  bench.land_all();

  ASSERT_TRUE(bench.mover->demand({1, 7}));  // never wished
  bench.land_all();
  EXPECT_EQ(bench.mover->overtaken_bytes(), 5 * kChunk);
}

TEST(Mover, ACancelledPrefetchThatIsDemandedAfterAllGoesOn) {
  Bench bench(4);
  bench.wish({{1, 5}});
  bench.wish({});
  ASSERT_TRUE(bench.mover->demand({1, 5}));
  bench.land_all();
  EXPECT_EQ(bench.cache.state({1, 5}), Residency::resident);
  EXPECT_EQ(bench.recorder.totals(EventKind::cancelled).count, 0u);
}

TEST(Mover, TellsWhenAPrefetchIsOnTheLink) {
  Bench bench(4);
  EXPECT_FALSE(bench.mover->prefetch_on_link());
  ASSERT_TRUE(bench.mover->demand({0, 1}));
  EXPECT_FALSE(bench.mover->prefetch_on_link());
  bench.wish({{1, 5}});
  EXPECT_TRUE(bench.mover->prefetch_on_link());
  bench.land_all();
  EXPECT_FALSE(bench.mover->prefetch_on_link());
}

// A policy that lets nobody make room for a wish.
class Stubborn final : public EvictionPolicy {
 public:
  std::string name() const override { return "stubborn"; }
  void arrived(ExpertKey) override {}
  void used(ExpertKey) override {}
  void left(ExpertKey) override {}
  std::optional<ExpertKey> victim(const CacheView& view, ExpertKey) const override {
    for (std::int32_t at = 0; at < kGeometry.total(); ++at) {
      if (view.evictable(kGeometry.key(at))) return kGeometry.key(at);
    }
    return std::nullopt;
  }
  bool yields(ExpertKey, const Prefetch&) const override { return false; }
};

TEST(Mover, AWishForWhichNobodyYieldsIsDroppedAndADemandIsServed) {
  ManualBackend backend;
  backend.open({"virtual"});
  SyntheticStore store(kGeometry, kBytes);
  Cache cache(kGeometry, 2, PoolScope::global, std::make_unique<Stubborn>());
  Recorder recorder;
  Mover mover(store, backend, cache, backend.fast_memory(2 * kBytes), recorder, {kChunk, 2});
  std::vector<Mover::Ending> ended;
  for (std::int32_t e = 0; e < 2; ++e) ASSERT_TRUE(mover.demand({0, e}));
  backend.land_all();
  mover.collect(ended);
  const Prefetch wishes[] = {{{1, 5}, 1, 1}, {{1, 6}, 1, 1}};
  mover.want(wishes);
  mover.start_wishes();
  EXPECT_TRUE(backend.pending().empty());
  EXPECT_FALSE(mover.prefetching());
  ASSERT_TRUE(mover.demand({1, 5}));
  EXPECT_EQ(recorder.totals(EventKind::evicted).count, 1u);
}

// Random demands, wishes, landings and failures, with leases held: leased experts stay, few chunks
// of prefetches are in flight, bytes add up, and the displaced are those of a model that is a list.
TEST(Mover, RandomWalkAgreesWithAModel) {
  std::uint64_t displaced = 0, late = 0, wasted = 0, cancelled = 0, failed = 0;
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    std::mt19937_64 random(seed);
    Bench bench(4 + random() % 4, seed % 2 ? "lru" : "expected-next-use", seed);
    Mover& mover = *bench.mover;
    const auto any = [&] { return kGeometry.key(std::int32_t(random() % kGeometry.total())); };
    Keys list;                        // displaced, oldest first
    std::map<ExpertKey, int> leases;  // held
    std::set<ExpertKey> early;        // moving as prefetches
    std::uint64_t overtaken = 0;

    const auto residents = [&] {
      std::set<ExpertKey> out;
      for (std::int32_t at = 0; at < kGeometry.total(); ++at) {
        const Residency state = bench.cache.state(kGeometry.key(at));
        if (state == Residency::resident || state == Residency::leased)
          out.insert(kGeometry.key(at));
      }
      return out;
    };
    const auto forget = [&] {
      if (!list.empty()) list.erase(list.begin());
    };
    for (int step = 0; step < 500; ++step) {
      const auto before = residents();
      switch (random() % 8) {
        case 0: {
          const ExpertKey key = any();
          const Residency state = bench.cache.state(key);
          const std::uint64_t so_far = mover.overtaken_bytes();
          if (state == Residency::absent) {
            if (!mover.demand(key)) break;
            if (std::erase(list, key) > 0) {  // what left for it would have stayed
              const auto after = residents();
              for (ExpertKey other : before) {
                if (!after.contains(other)) list.push_back(other);
              }
            } else {
              forget();
            }
          } else if (state == Residency::loading) {
            if (!mover.demand(key)) break;
            if (early.erase(key)) forget();
          }
          overtaken += mover.overtaken_bytes() - so_far;
          EXPECT_LE(mover.overtaken_bytes() - so_far, kBytes);
          break;
        }
        case 1: {
          std::vector<Prefetch> wanted;
          for (std::uint64_t i = random() % 4; i > 0; --i) wanted.push_back({any(), .5f, step});
          mover.want(wanted);
          break;
        }
        case 2: {
          std::set<ExpertKey> was;
          for (std::int32_t at = 0; at < kGeometry.total(); ++at) {
            if (bench.cache.state(kGeometry.key(at)) == Residency::loading) {
              was.insert(kGeometry.key(at));
            }
          }
          mover.start_wishes();
          const auto after = residents();
          Keys gone, started;
          for (ExpertKey key : before) {
            if (!after.contains(key)) gone.push_back(key);
          }
          for (std::int32_t at = 0; at < kGeometry.total(); ++at) {
            const ExpertKey key = kGeometry.key(at);
            if (bench.cache.state(key) != Residency::loading || was.contains(key)) continue;
            started.push_back(key);
            early.insert(key);
            std::erase(list, key);
          }
          EXPECT_LE(gone.size(), started.size());
          ASSERT_LE(started.size(), 1u);  // its first two chunks are all that may be in flight
          displaced += gone.size();
          list.insert(list.end(), gone.begin(), gone.end());
          break;
        }
        case 3:
        case 6:
        case 7: {
          const auto pending = bench.backend.pending();
          if (pending.empty()) break;
          const Ticket ticket = pending[random() % pending.size()].ticket;
          if (random() % 20 == 0) {
            bench.backend.fail(ticket, "bad sector");
          } else {
            bench.backend.land(ticket);
          }
          break;
        }
        case 4: {
          bench.collect();
          for (const Mover::Ending& ending : bench.ended) early.erase(ending.key);
          for (auto it = early.begin(); it != early.end();) {
            it = bench.cache.state(*it) == Residency::loading ? std::next(it) : early.erase(it);
          }
          break;
        }
        case 5: {
          const ExpertKey key = any();
          if (bench.cache.state(key) == Residency::leased) {
            bench.cache.release(key);
            if (--leases[key] == 0) leases.erase(key);
          } else if (bench.cache.state(key) == Residency::resident) {
            if (mover.used(key)) forget();
            bench.cache.used(key);
            if (leases.size() < 2) {
              bench.cache.lease(key);
              ++leases[key];
            }
          }
          break;
        }
      }
      for (const auto& [key, count] : leases) {
        ASSERT_EQ(bench.cache.state(key), Residency::leased);
      }
      int chunks = 0;
      for (const auto& copy : bench.backend.pending()) chunks += copy.lane == Lane::prefetch;
      // A promoted transfer's first chunks stay on the lane they were started on.
      if (overtaken == 0) ASSERT_LE(chunks, 2);
      ASSERT_EQ(bench.displaced().size(), list.size()) << "seed " << seed << " step " << step;
      for (ExpertKey key : list) ASSERT_TRUE(mover.displaced(key)) << "seed " << seed;
    }
    mover.want({});
    bench.land_all();
    const auto bytes = [&](EventKind kind) { return bench.recorder.totals(kind).bytes; };
    // What landed is what was recorded, and each byte has one fate.
    EXPECT_EQ(bytes(EventKind::read_demand) + bytes(EventKind::read_prefetch) +
                  bytes(EventKind::cancelled),
              bench.backend.stats(Lane::demand).bytes + bench.backend.stats(Lane::prefetch).bytes);
    EXPECT_EQ(
        bytes(EventKind::read_prefetch),
        bytes(EventKind::prefetch_used) + bytes(EventKind::prefetch_wasted) + mover.unused_bytes());
    EXPECT_EQ(overtaken, mover.overtaken_bytes());
    late += bytes(EventKind::prefetch_late);
    wasted += bytes(EventKind::prefetch_wasted);
    cancelled += bytes(EventKind::cancelled);
    failed += bench.recorder.totals(EventKind::failed).count;
  }
  // The walk went everywhere.
  EXPECT_GT(displaced, 20u);
  EXPECT_GT(late, 20 * kBytes);
  EXPECT_GT(wasted, 20 * kBytes);
  EXPECT_GT(cancelled, 20 * kBytes);
  EXPECT_GT(failed, 20u);
}

}  // namespace
}  // namespace prophet
