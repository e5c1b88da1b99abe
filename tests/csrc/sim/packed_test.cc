// Continuous batching in a replay, against a plain count of sets, and what is foreseen in it.
#include <gtest/gtest.h>

#include <cstring>
#include <list>
#include <set>
#include <tuple>

#include "core/error.h"
#include "predict/bank_predictor.h"
#include "predict/small_bank.h"
#include "predict/stream_predictor.h"
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

// What a bank says after each layer step, told to nobody.
class Diary final : public Predictor {
 public:
  using Entry = std::pair<std::vector<float>, std::vector<Forecast>>;
  using Entries = std::vector<Entry>;

  Diary(const std::shared_ptr<const BankNetwork>& network, Entries& entries)
      : bank_(network), entries_(entries) {}
  std::string name() const override { return "diary"; }
  void reset() override { bank_.reset(); }
  void observe(const Glimpse& glimpse) override {
    bank_.observe(glimpse);
    Entry& entry = entries_.emplace_back();
    entry.first.resize(small_bank::kExperts);
    EXPECT_TRUE(bank_.next_use(glimpse.layer, entry.first));
    bank_.forecast(glimpse.layer, entry.second);
  }

 private:
  BankPredictor bank_;
  Entries& entries_;
};

void expect_same(const Diary::Entries& said, const Diary::Entries& alone) {
  ASSERT_EQ(said.size(), alone.size());
  for (std::size_t i = 0; i < said.size(); ++i) {
    EXPECT_EQ(said[i].first, alone[i].first);
    ASSERT_EQ(said[i].second.size(), alone[i].second.size());
    for (std::size_t f = 0; f < said[i].second.size(); ++f) {
      const Forecast &a = said[i].second[f], &b = alone[i].second[f];
      EXPECT_EQ(std::tie(a.key, a.p, a.horizon), std::tie(b.key, b.p, b.horizon));
    }
  }
}

class PackedStreams : public ::testing::Test {
 protected:
  static constexpr std::int32_t kTokens = 20;

  // What each request's predictor says, the requests in the order in which they come.
  std::list<Diary::Entries> diaries(const std::vector<std::int32_t>& routes, const Passes& passes,
                                    const std::vector<std::int64_t>& streams) const {
    std::list<Diary::Entries> entries;
    ReplayOptions options = options_for(geometry_, 18, "expected-next-use");
    options.predictor = [&] {
      const auto make = [&] { return std::make_unique<Diary>(network_, entries.emplace_back()); };
      return std::make_unique<StreamPredictor>(make, geometry_.experts_per_layer);
    };
    Replay replay(options);
    std::vector<Nanos> ends;
    replay.packed({routes, {}, {}, {}, streams}, passes, ends);
    entries.remove_if([](const Diary::Entries& one) { return one.empty(); });
    return entries;
  }

  const std::shared_ptr<const BankNetwork> network_ =
      std::make_shared<const BankNetwork>(small_bank::config(), small_bank::weights());
  const Geometry geometry_ = network_->config().geometry;
  const std::size_t row_ = std::size_t(geometry_.layers) * geometry_.top_k;
  const std::vector<std::int32_t> text_ = make_routes(geometry_, kTokens, true, 5);
};

TEST_F(PackedStreams, TwoCopiesOfASequenceForeseeWhatOneAloneDoes) {
  const auto alone = diaries(text_, Passes(kTokens, {1, 1}), std::vector<std::int64_t>(kTokens, 7));
  ASSERT_EQ(alone.size(), 1u);
  ASSERT_EQ(alone.front().size(), std::size_t(kTokens * geometry_.layers));
  for (std::int32_t lag : {0, 3}) {
    std::vector<std::int32_t> routes;
    std::vector<std::int64_t> streams;
    Passes passes;
    for (std::int32_t t = 0; t < kTokens + lag; ++t) {
      Replay::Pass& pass = passes.emplace_back();
      for (const auto& [stream, token] : {std::pair{40, t}, std::pair{41, t - lag}}) {
        if (token < 0 || token >= kTokens) continue;
        const auto from = text_.begin() + std::ptrdiff_t(token * row_);
        routes.insert(routes.end(), from, from + std::ptrdiff_t(row_));
        streams.push_back(stream);
        pass = {pass.tokens + 1, pass.decoded + 1};
      }
    }
    const auto both = diaries(routes, passes, streams);
    ASSERT_EQ(both.size(), 2u);
    for (const Diary::Entries& one : both) expect_same(one, alone.front());

    // Read as one text, they are another text.
    const auto mixed = diaries(routes, passes, {});
    ASSERT_EQ(mixed.size(), 1u);
    EXPECT_NE(mixed.front().back().first, alone.front().back().first);
  }
}

TEST_F(PackedStreams, OneRequestIsTheReplayWithoutNamesToTheByte) {
  const auto replayed = [&](const std::vector<std::int64_t>& streams) {
    ReplayOptions options = options_for(geometry_, 18, "expected-next-use");
    options.engine.prefetch.last = 2;
    options.predictor = [&] {
      return std::make_unique<StreamPredictor>(
          [&] { return std::make_unique<BankPredictor>(network_); }, geometry_.experts_per_layer);
    };
    Replay replay(options);
    std::vector<Nanos> ends;
    replay.packed({text_, {}, {}, {}, streams}, Passes{{6, 0}, {2, 1}, {12, 1}}, ends);
    Counters counters = replay.result().counters;
    counters.foresight_ns = 0;  // real time
    return std::pair{ends, counters};
  };
  const auto named = replayed(std::vector<std::int64_t>(kTokens, 7)), unnamed = replayed({});
  EXPECT_EQ(named.first, unnamed.first);
  EXPECT_EQ(std::memcmp(&named.second, &unnamed.second, sizeof(Counters)), 0);
  EXPECT_GT(named.second.foresight_steps, 0u);
}

TEST(Packed, RefusesPassesThatAreNotTheChunks) {
  const auto routes = make_routes(kGeometry, 4, false, 1);
  Replay replay(options_for(kGeometry, 40));
  std::vector<Nanos> ends;
  EXPECT_THROW(replay.packed({routes, {}, {}}, Passes{{3, 1}}, ends), InvalidArgument);
  EXPECT_THROW(replay.packed({routes, {}, {}}, Passes{{4, 5}}, ends), InvalidArgument);
  EXPECT_THROW(replay.packed({routes, {}, {}}, Passes{{4, -1}}, ends), InvalidArgument);
  EXPECT_THROW(replay.packed({routes, {}, {}}, Passes{{0, 0}, {4, 1}}, ends), InvalidArgument);
  const std::vector<std::int64_t> three(3);
  EXPECT_THROW(replay.packed({routes, {}, {}, {}, three}, Passes{{4, 1}}, ends), InvalidArgument);
  EXPECT_EQ(replay.result().passes, 0u);
}

}  // namespace
}  // namespace prophet::testing
