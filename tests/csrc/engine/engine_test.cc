#include "engine/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <list>
#include <map>
#include <thread>

#include "core/error.h"
#include "engine/engine_fixture.h"

namespace prophet {
namespace {

constexpr Geometry kGeometry{3, 8, 2};

void use(World& world, std::int32_t layer, std::vector<std::int32_t> experts) {
  Lease lease;
  world.engine->step(layer);
  world.engine->lease(layer, experts, lease);
  for (std::int32_t expert : experts) {
    const std::int32_t slot = world.engine->wait(lease, expert);
    EXPECT_TRUE(world.content_is_right({layer, expert}, slot));
  }
  world.engine->release(lease);
}

TEST(Engine, TellsHitsFromMisses) {
  World world(kGeometry, options_with(4));
  use(world, 0, {1, 2});
  use(world, 0, {2, 3});
  const Counters c = world.engine->counters();
  EXPECT_EQ(c.misses, 3u);
  EXPECT_EQ(c.hits_resident, 1u);
  EXPECT_EQ(c.hits_in_flight, 0u);
  EXPECT_EQ(c.bytes_demand, 3 * kExpertBytes);
  EXPECT_EQ(c.expert_bytes_routed, 4 * kExpertBytes);
  EXPECT_GT(c.stall_ns, 0);
  expect_bytes_add_up(*world.engine);
}

// Least recently used, from the definition: a list of keys, most recent first.
TEST(Engine, LruMissesEqualABruteForceModel) {
  World world(kGeometry, options_with(7));
  std::list<ExpertKey> model;
  std::uint64_t misses = 0;
  std::mt19937 random(4);
  for (int step = 0; step < 600; ++step) {
    const std::int32_t layer = step % 3;
    std::vector<std::int32_t> experts = {int(random() % 8), 0};
    do experts[1] = int(random() % 8);
    while (experts[1] == experts[0]);
    use(world, layer, experts);
    std::vector<ExpertKey> absent;
    for (std::int32_t expert : experts) {
      const ExpertKey key{layer, expert};
      const auto at = std::find(model.begin(), model.end(), key);
      if (at == model.end()) {
        absent.push_back(key);
      } else {
        model.erase(at);
        model.push_front(key);
      }
    }
    for (ExpertKey key : absent) {
      ++misses;
      model.push_front(key);
      if (model.size() > 7) model.pop_back();
    }
  }
  EXPECT_EQ(world.engine->counters().misses, misses);
}

TEST(Engine, RefusesLeasesItCannotServe) {
  World world(kGeometry, options_with(3));
  Lease lease, other;
  const std::int32_t twice[] = {1, 1}, outside[] = {8}, many[] = {0, 1, 2, 3}, two[] = {4, 5},
                     three[] = {0, 1, 2};
  EXPECT_THROW(world.engine->lease(0, twice, lease), InvalidArgument);
  EXPECT_THROW(world.engine->lease(0, outside, lease), InvalidArgument);
  EXPECT_THROW(world.engine->lease(3, two, lease), InvalidArgument);
  EXPECT_THROW(world.engine->lease(0, many, lease), InvalidArgument);
  world.engine->lease(0, three, lease);
  EXPECT_THROW(world.engine->lease(0, three, lease), StateError);  // the same object twice
  EXPECT_THROW(world.engine->lease(1, two, other), StateError);    // no slot left
  EXPECT_FALSE(other.live);
  EXPECT_THROW(world.engine->wait(lease, 7), InvalidArgument);
  world.engine->release(lease);
  use(world, 1, {4, 5});  // and all is as before
  expect_bytes_add_up(*world.engine);
}

TEST(Engine, SaysNoAfterClose) {
  World world(kGeometry, options_with(4));
  Lease lease;
  const std::int32_t one[] = {1};
  world.engine->lease(0, one, lease);
  world.engine->close();
  world.engine->close();
  EXPECT_THROW(world.engine->wait(lease, 1), StateError);
  EXPECT_THROW(world.engine->step(0), StateError);
  EXPECT_THROW(world.engine->want({}), StateError);
  world.engine->release(lease);
}

TEST(Engine, RefusesSlotsBelowTopKAndUnknownPolicies) {
  EXPECT_THROW(World(kGeometry, options_with(1)), InvalidArgument);
  EngineOptions options = options_with(4);
  options.policy = "best";
  EXPECT_THROW(World(kGeometry, options), InvalidArgument);
}

// ---- prefetch: every outcome ----

TEST(Prefetch, ArrivedInTimeIsAHitAndItsBytesAreUsed) {
  World world(kGeometry, options_with(4));
  const Prefetch wish[] = {{{1, 3}, .9f, 1}};
  world.engine->want(wish);
  while (!world.backend->pending().empty()) {
    world.backend->land_all();
    world.engine->want(wish);  // restating a plan pumps it and starts nothing twice
  }
  EXPECT_EQ(world.engine->state({1, 3}), Residency::resident);
  EXPECT_EQ(world.engine->counters().bytes_prefetch_unused, kExpertBytes);
  use(world, 1, {3});
  const Counters c = world.engine->counters();
  EXPECT_EQ(c.hits_resident, 1u);
  EXPECT_EQ(c.misses, 0u);
  EXPECT_EQ(c.bytes_prefetch_used, kExpertBytes);
  EXPECT_EQ(c.bytes_moved, kExpertBytes);
  expect_bytes_add_up(*world.engine);
}

TEST(Prefetch, KeepsFewChunksInFlightAndADemandPromotesTheRest) {
  World world(kGeometry, options_with(4));
  const Prefetch wish[] = {{{1, 3}, .9f, 1}};
  world.engine->want(wish);
  EXPECT_EQ(world.backend->pending().size(), 2u);  // MoverOptions::prefetch_chunks
  Lease lease;
  const std::int32_t experts[] = {3};
  world.engine->lease(1, experts, lease);
  std::size_t demand = 0;
  for (const auto& copy : world.backend->pending()) demand += copy.lane == Lane::demand;
  EXPECT_EQ(demand, (kExpertBytes + 255) / 256 - 2);
  EXPECT_TRUE(world.content_is_right({1, 3}, world.engine->wait(lease, 3)));
  world.engine->release(lease);
  const Counters c = world.engine->counters();
  EXPECT_EQ(c.hits_in_flight, 1u);
  EXPECT_EQ(c.bytes_prefetch_late, kExpertBytes);
  EXPECT_EQ(c.bytes_demand, 0u);
  expect_bytes_add_up(*world.engine);
}

TEST(Prefetch, CancelledBytesAreCountedAndTheSlotWaitsForTheDisk) {
  World world(kGeometry, options_with(2));
  const Prefetch wish[] = {{{1, 3}, .9f, 1}};
  world.engine->want(wish);
  world.engine->want({});
  EXPECT_EQ(world.engine->state({1, 3}), Residency::loading);  // two chunks still write there
  // Both slots are needed now: the demand waits for the cancelled one to drain.
  use(world, 0, {0, 1});
  const Counters c = world.engine->counters();
  EXPECT_EQ(c.bytes_cancelled, 512u);
  EXPECT_EQ(c.bytes_demand, 2 * kExpertBytes);
  expect_bytes_add_up(*world.engine);
}

TEST(Prefetch, WishedAgainWhileBeingCancelledGoesOn) {
  World world(kGeometry, options_with(4));
  const Prefetch wish[] = {{{1, 3}, .9f, 1}};
  world.engine->want(wish);
  world.engine->want({});
  world.engine->want(wish);
  use(world, 1, {3});
  EXPECT_EQ(world.engine->counters().bytes_cancelled, 0u);
  EXPECT_EQ(world.engine->counters().bytes_moved, kExpertBytes);
}

TEST(Prefetch, EvictedBeforeUseIsWaste) {
  World world(kGeometry, options_with(2));
  const Prefetch wish[] = {{{1, 3}, .9f, 1}};
  while (world.engine->state({1, 3}) != Residency::resident) {
    world.engine->want(wish);
    world.backend->land_all();
  }
  use(world, 0, {0, 1});
  const Counters c = world.engine->counters();
  EXPECT_EQ(c.bytes_prefetch_wasted, kExpertBytes);
  EXPECT_EQ(c.evicted_before_use, 1u);
  expect_bytes_add_up(*world.engine);
}

TEST(Prefetch, AFailedPrefetchHurtsNobody) {
  World world(kGeometry, options_with(4));
  const Prefetch wish[] = {{{1, 3}, .9f, 1}};
  world.engine->want(wish);
  world.backend->fail(world.backend->pending()[0].ticket, "bad sector");
  world.backend->land_all();
  world.engine->want({});
  EXPECT_EQ(world.engine->state({1, 3}), Residency::absent);
  use(world, 1, {3});
  EXPECT_EQ(world.engine->counters().misses, 1u);
  expect_bytes_add_up(*world.engine);
}

// Random plans, leases, failures and landings: the state machine and the accounts hold throughout.
TEST(Engine, RandomWalkKeepsLeasedExpertsAndAccounts) {
  for (std::uint64_t seed = 1; seed <= 30; ++seed) {
    std::mt19937 random(static_cast<std::uint32_t>(seed));
    EngineOptions options = options_with(9);
    options.policy = eviction_policy_names()[seed % eviction_policy_names().size()];
    ManualOptions manual;
    manual.seed = seed;
    World world(kGeometry, options, manual);
    struct Held {
      Lease lease;
      std::map<std::int32_t, std::int32_t> slots;
    };
    std::list<Held> held;
    for (int step = 0; step < 300; ++step) {
      switch (random() % 5) {
        case 0: {  // restate a plan
          std::vector<Prefetch> wishes;
          for (std::uint32_t i = 0; i < random() % 4; ++i) {
            wishes.push_back({{int(random() % 3), int(random() % 8)}, .5f, step + int(i)});
          }
          world.engine->want(wishes);
          break;
        }
        case 1: {  // something lands or fails
          const auto pending = world.backend->pending();
          if (pending.empty()) break;
          const Ticket ticket = pending[random() % pending.size()].ticket;
          if (random() % 10 == 0) {
            world.backend->fail(ticket, "injected");
          } else {
            world.backend->land(ticket);
          }
          break;
        }
        case 2:
        case 3: {  // a layer step
          if (held.size() == 3) break;
          std::vector<std::int32_t> experts = {int(random() % 8), 0};
          do experts[1] = int(random() % 8);
          while (experts[1] == experts[0]);
          const std::int32_t layer = int(random() % 3);
          held.emplace_back();
          try {
            world.engine->step(layer);
            world.engine->lease(layer, experts, held.back().lease);
            for (std::int32_t e : experts) {
              held.back().slots[e] = world.engine->wait(held.back().lease, e);
            }
          } catch (const ReadError&) {
            world.engine->release(held.back().lease);
            held.pop_back();
          }
          break;
        }
        default:
          if (held.empty()) break;
          world.engine->release(held.front().lease);
          held.pop_front();
      }
      for (const Held& one : held) {
        for (const auto& [expert, slot] : one.slots) {
          const ExpertKey key{one.lease.entries.front().key.layer, expert};
          ASSERT_EQ(world.engine->state(key), Residency::leased);
          ASSERT_TRUE(world.content_is_right(key, slot));
        }
      }
    }
    for (Held& one : held) world.engine->release(one.lease);
    while (!world.backend->pending().empty()) {
      world.backend->land_all();
      world.engine->want({});
    }
    expect_bytes_add_up(*world.engine);
  }
}

// Callers on several threads, prefetches in the background, everything right; for TSan above all.
TEST(Engine, ServesManyThreads) {
  EngineOptions options = options_with(12);
  options.background = true;
  options.threads = 2;
  World world({4, 8, 2}, options);
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 3; ++caller) {
    callers.emplace_back([&world, caller] {
      std::mt19937 random(static_cast<std::uint32_t>(caller));
      for (int step = 0; step < 40; ++step) {
        const std::int32_t layer = step % 4;
        const Prefetch wish[] = {{{(layer + 1) % 4, int(random() % 8)}, .5f, step}};
        world.engine->want(wish);
        if (caller == 0) {
          use(world, layer, {int(random() % 8)});
          continue;
        }
        Batch batch(1, world.engine->geometry(), random);
        batch.run(*world.engine, layer);
        const auto want = batch.expected(world, layer);
        for (std::size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(batch.out[i], want[i], 1e-4);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  world.engine->close();
}

}  // namespace
}  // namespace prophet
