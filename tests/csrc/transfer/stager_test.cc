// Wishes that end in the staging tier, on a backend that has one and on one that has none.
#include "transfer/stager.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>

#include "core/error.h"
#include "device/manual/manual_backend.h"
#include "policy/prefetch_policy.h"
#include "store/synthetic_store.h"
#include "transfer/mover.h"

namespace prophet {
namespace {

constexpr Geometry kGeometry{2, 8, 2};
constexpr std::uint64_t kBytes = 1000, kChunk = 250;

// A manual backend with a staging tier: what is staged lands when the test says so.
class WithStaging final : public Backend {
 public:
  struct Chunk {
    Ticket ticket;
    Extent from;
    bool landed = false, failed = false;
  };
  std::vector<Chunk> staged;
  ManualBackend below;

  void land_all() {
    for (Chunk& chunk : staged) chunk.landed = true;
  }
  std::size_t in_flight() const {
    return std::size_t(
        std::count_if(staged.begin(), staged.end(), [](const Chunk& c) { return !c.landed; }));
  }

  bool has_staging() const override { return true; }
  Ticket stage(const Extent& from) override {
    staged.push_back({kFirst + staged.size(), from});
    return staged.back().ticket;
  }
  bool poll(Ticket ticket) override {
    if (ticket < kFirst) return below.poll(ticket);
    const Chunk& chunk = staged[ticket - kFirst];
    if (chunk.failed) throw ReadError("a chunk that fails");
    return chunk.landed;
  }
  std::string name() const override { return "with staging"; }
  std::string description() const override { return below.description(); }
  std::span<std::byte> fast_memory(std::size_t bytes) override { return below.fast_memory(bytes); }
  std::vector<FileInfo> open(const std::vector<std::string>& paths) override {
    return below.open(paths);
  }
  std::size_t alignment() const override { return below.alignment(); }
  Ticket copy(Lane lane, std::byte* to, const Extent& from) override {
    return below.copy(lane, to, from);
  }
  void wait_any(std::span<const Ticket> tickets) override { below.wait_any(tickets); }
  void wait(Ticket ticket) override { below.wait(ticket); }
  Ticket mark(Stream compute) override { return below.mark(compute); }
  void after(Lane lane, Ticket ticket) override { below.after(lane, ticket); }
  void after(Stream compute, Ticket ticket) override { below.after(compute, ticket); }
  Nanos now() const override { return below.now(); }
  LaneStats stats(Lane lane) const override { return below.stats(lane); }
  Nanos busy() const override { return below.busy(); }

 private:
  static constexpr Ticket kFirst = Ticket{1} << 40;
};

template <typename Machine>
struct Bench {
  Bench()
      : store(kGeometry, kBytes),
        cache(kGeometry, 4, PoolScope::global, make_eviction_policy("lru", kGeometry)) {
    backend.open({"virtual"});
    mover.emplace(store, backend, cache, backend.fast_memory(4 * kBytes), recorder,
                  MoverOptions{kChunk, 2});
  }
  void wish(std::vector<std::pair<ExpertKey, Reach>> wishes) {
    std::vector<Prefetch> wanted;
    for (const auto& [key, reach] : wishes) wanted.push_back({key, 0.5f, 1, reach});
    mover->want(wanted);
    mover->start_wishes();
  }
  void collect() {
    std::vector<Mover::Ending> ended;
    mover->collect(ended);
    mover->start_wishes();
  }
  Machine backend;
  SyntheticStore store;
  Cache cache;
  Recorder recorder;
  std::optional<Mover> mover;
};

TEST(Stager, BringsAWholeExpertWithoutASlot) {
  Bench<WithStaging> bench;
  bench.wish({{{1, 3}, Reach::staging}});
  std::uint64_t bytes = 0;
  while (bench.mover->prefetching()) {
    EXPECT_LE(bench.backend.in_flight(), 2u);
    bench.backend.land_all();
    bench.collect();
  }
  for (const auto& chunk : bench.backend.staged) bytes += chunk.from.bytes;
  EXPECT_EQ(bytes, kBytes);
  EXPECT_EQ(bench.backend.staged.front().from.offset, bench.store.where({1, 3}).front().offset);
  EXPECT_EQ(bench.cache.state({1, 3}), Residency::absent);
  EXPECT_TRUE(bench.backend.below.pending().empty());
  EXPECT_FALSE(bench.mover->prefetch_on_link());
}

TEST(Stager, AWishRestatedStartsNothingAndOneThatIsDroppedStops) {
  Bench<WithStaging> bench;
  bench.wish({{{0, 1}, Reach::staging}});
  bench.wish({{{0, 1}, Reach::staging}});
  EXPECT_EQ(bench.backend.staged.size(), 2u);
  bench.wish({});
  bench.backend.land_all();
  bench.collect();
  EXPECT_EQ(bench.backend.staged.size(), 2u);
  EXPECT_FALSE(bench.mover->prefetching());
  bench.wish({{{0, 1}, Reach::staging}});  // from the beginning: the tier knows what it has
  while (bench.mover->prefetching()) {
    bench.backend.land_all();
    bench.collect();
  }
  EXPECT_EQ(bench.backend.staged.size(), 6u);
  bench.wish({{{0, 1}, Reach::staging}});
  EXPECT_EQ(bench.backend.staged.size(), 6u);
}

TEST(Stager, ADemandEndsTheWish) {
  Bench<WithStaging> bench;
  bench.wish({{{0, 1}, Reach::staging}});
  ASSERT_TRUE(bench.mover->demand({0, 1}));
  bench.backend.land_all();
  bench.backend.below.land_all();
  bench.collect();
  EXPECT_EQ(bench.backend.staged.size(), 2u);
  EXPECT_EQ(bench.cache.state({0, 1}), Residency::resident);
  bench.wish({{{0, 1}, Reach::staging}});  // it is better off
  EXPECT_EQ(bench.backend.staged.size(), 2u);
}

TEST(Stager, AFailedReadEndsTheWishQuietly) {
  Bench<WithStaging> bench;
  bench.wish({{{0, 1}, Reach::staging}});
  bench.backend.staged[0].failed = true;
  bench.backend.staged[1].landed = true;
  bench.collect();
  EXPECT_FALSE(bench.mover->prefetching());
  EXPECT_EQ(bench.backend.staged.size(), 2u);
}

TEST(Stager, WishesOfBothKindsGoTheirWays) {
  Bench<WithStaging> bench;
  bench.wish({{{0, 1}, Reach::fast}, {{0, 2}, Reach::staging}});
  EXPECT_EQ(bench.backend.below.pending().size(), 2u);
  EXPECT_EQ(bench.backend.staged.size(), 2u);
  bench.wish({{{0, 1}, Reach::staging}, {{0, 2}, Reach::fast}});  // they change places
  bench.backend.land_all();
  bench.backend.below.land_all();
  bench.collect();
  while (bench.mover->prefetching()) {
    bench.backend.land_all();
    bench.backend.below.land_all();
    bench.collect();
  }
  EXPECT_EQ(bench.cache.state({0, 1}), Residency::absent);
  EXPECT_EQ(bench.cache.state({0, 2}), Residency::resident);
}

TEST(Stager, WithoutATierNothingIsStaged) {
  Bench<ManualBackend> bench;
  bench.wish({{{0, 1}, Reach::staging}});
  EXPECT_FALSE(bench.mover->prefetching());
  EXPECT_TRUE(bench.backend.pending().empty());
}

// The rule of three tiers, as a policy states it.
std::map<ExpertKey, Reach> plan(const PrefetchRule& rule, const std::vector<Forecast>& forecasts,
                                double steps = 0, double staged = 0) {
  std::vector<Prefetch> wanted;
  make_prefetch_policy(rule)->plan({10, forecasts, steps, staged}, wanted);
  std::map<ExpertKey, Reach> out;
  bool staging = false;
  for (const Prefetch& wish : wanted) {
    staging = staging || wish.reach == Reach::staging;
    EXPECT_EQ(wish.reach == Reach::staging, staging) << "fast ones come first";
    out[wish.key] = wish.reach;
  }
  return out;
}

TEST(Stager, ConfidenceDecidesHowFarAWishTravels) {
  const std::vector<Forecast> forecasts{
      {{1, 0}, 0.9f, 1}, {{1, 1}, 0.5f, 1}, {{1, 2}, 0.3f, 1}, {{1, 3}, 0.1f, 1}};
  PrefetchRule rule{.first = 1, .last = 2, .least = 0.5f};
  const std::map<ExpertKey, Reach> two{{{1, 0}, Reach::fast}, {{1, 1}, Reach::fast}};
  EXPECT_EQ(plan(rule, forecasts), two);  // one threshold: as without a tier
  rule.staging = 0.3f;
  auto three = two;
  three[{1, 2}] = Reach::staging;
  EXPECT_EQ(plan(rule, forecasts), three);
  rule.staging = 0.7f;  // above the other: no tier
  EXPECT_EQ(plan(rule, forecasts), two);
  rule.staging = -0.1f;
  EXPECT_THROW(make_prefetch_policy(rule), InvalidArgument);
}

TEST(Stager, EachLaneIsFilledByItsOwnTime) {
  std::vector<Forecast> forecasts;
  for (std::int32_t e = 0; e < 8; ++e) forecasts.push_back({{1, e}, e < 4 ? 0.9f : 0.4f, 1});
  const PrefetchRule rule{.first = 1, .last = 1, .least = 0.5f, .staging = 0.1f, .fill = 1};
  const auto count = [&](double steps, double staged, Reach reach) {
    const auto wishes = plan(rule, forecasts, steps, staged);
    return std::count_if(wishes.begin(), wishes.end(),
                         [&](const auto& wish) { return wish.second == reach; });
  };
  EXPECT_EQ(count(0.5, 10, Reach::fast), 2);
  EXPECT_EQ(count(0.5, 10, Reach::staging), 1);
  EXPECT_EQ(count(10, 0.25, Reach::fast), 1);
  EXPECT_EQ(count(10, 0.25, Reach::staging), 4);
}

}  // namespace
}  // namespace prophet
