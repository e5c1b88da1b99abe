#include "engine/foresight.h"

#include <gtest/gtest.h>

#include <stdexcept>

#include "engine/engine_fixture.h"

namespace prophet {
namespace {

constexpr Geometry kGeometry{3, 8, 2};

// Says that every expert but the router's last choice is needed late, and notes what it saw.
class Recency final : public Predictor {
 public:
  struct Notes {
    std::vector<std::int32_t> layers;
    std::vector<std::vector<std::int32_t>> experts;
    std::vector<float> hidden;
  };
  explicit Recency(std::shared_ptr<Notes> notes, std::int32_t fail_at = -1)
      : notes_(std::move(notes)), fail_at_(fail_at) {}
  std::string name() const override { return "recency"; }
  std::int32_t hidden_width() const override { return kHidden; }
  void reset() override {}
  void observe(const Glimpse& glimpse) override {
    if (fail_at_ == std::int32_t(notes_->layers.size())) throw std::runtime_error("out of ideas");
    notes_->layers.push_back(glimpse.layer);
    notes_->experts.emplace_back(glimpse.experts, glimpse.experts + glimpse.tokens * glimpse.top_k);
    if (glimpse.hidden) notes_->hidden.assign(glimpse.hidden, glimpse.hidden + kHidden);
  }
  bool next_use(std::int32_t, std::span<float> gaps) override {
    for (float& gap : gaps) gap = 8;
    for (std::int32_t expert : notes_->experts.back()) gaps[expert] = 1;
    return true;
  }

 private:
  std::shared_ptr<Notes> notes_;
  std::int32_t fail_at_;
};

struct Told final : EvictionPolicy {
  std::vector<std::pair<std::int32_t, std::vector<float>>> heard;
  std::string name() const override { return "told"; }
  void arrived(ExpertKey) override {}
  void used(ExpertKey) override {}
  void left(ExpertKey) override {}
  void expects(std::int32_t layer, std::span<const float> gaps) override {
    heard.emplace_back(layer, std::vector<float>(gaps.begin(), gaps.end()));
  }
  std::optional<ExpertKey> victim(const CacheView&, ExpertKey) const override { return {}; }
};

TEST(Foresight, TellsThePolicyWhatWasPostedBeforeItSettles) {
  for (bool threaded : {false, true}) {
    auto notes = std::make_shared<Recency::Notes>();
    Foresight foresight(std::make_unique<Recency>(notes), kGeometry, threaded);
    Told policy;
    for (std::int32_t step = 0; step < 200; ++step) {
      const std::int32_t experts[] = {step % 8, (step + 3) % 8};
      foresight.post({step % 3, 1, 2, experts, nullptr, nullptr});
      foresight.settle(policy);
      ASSERT_EQ(policy.heard.size(), std::size_t(step) + 1);
      EXPECT_EQ(policy.heard.back().first, step % 3);
      EXPECT_EQ(policy.heard.back().second[std::size_t(step % 8)], 1);
    }
    EXPECT_EQ(foresight.observations(), 200u);
    EXPECT_GT(foresight.time(), 0);
    EXPECT_EQ(foresight.failure(), "");
  }
}

// Notes in which order it hears of layers, and what it is told before they run.
class Early final : public Predictor {
 public:
  struct Notes {
    std::vector<std::pair<char, std::int32_t>> calls;  // 'a'pproach, 'o'bserve, 'f'orecast
    std::vector<std::int32_t> ids;
    std::vector<float> entering;
  };
  explicit Early(std::shared_ptr<Notes> notes, std::int32_t fail_at = -1)
      : notes_(std::move(notes)), fail_at_(fail_at) {}
  std::string name() const override { return "early"; }
  bool reads_tokens() const override { return true; }
  std::int32_t entering_width() const override { return 2; }
  void reset() override {}
  void observe(const Glimpse& glimpse) override { notes_->calls.emplace_back('o', glimpse.layer); }
  bool approach(const Approach& approach) override {
    if (approach.layer == fail_at_) throw std::runtime_error("out of ideas");
    notes_->calls.emplace_back('a', approach.layer);
    if (approach.ids) notes_->ids.assign(approach.ids, approach.ids + approach.tokens);
    if (approach.entering) notes_->entering.assign(approach.entering, approach.entering + 2);
    return approach.layer != 1;
  }
  void forecast(std::int32_t layer, std::vector<Forecast>& out) override {
    notes_->calls.emplace_back('f', layer);
    out.push_back({{(layer + 1) % 3, 4}, .5f, 1});
  }

 private:
  std::shared_ptr<Notes> notes_;
  std::int32_t fail_at_;
};

TEST(Foresight, ApproachesAndGlimpsesKeepTheirOrder) {
  for (bool threaded : {false, true}) {
    auto notes = std::make_shared<Early::Notes>();
    Foresight foresight(std::make_unique<Early>(notes), kGeometry, threaded, true);
    Told policy;
    const std::int32_t experts[] = {1, 2}, ids[] = {7, -1};
    const float entering[] = {.5f, 2};
    for (std::int32_t layer = 0; layer < 3; ++layer) {
      foresight.post(Approach{layer, 2, layer == 0 ? ids : nullptr, entering}, layer);
      foresight.post(Glimpse{layer, 1, 2, experts}, layer + 1);
    }
    foresight.settle(policy);
    const std::vector<std::pair<char, std::int32_t>> meant = {
        {'a', 0}, {'f', 2}, {'o', 0}, {'f', 0},  // the layer before the first is the last one
        {'a', 1}, {'o', 1}, {'f', 1},            // no news
        {'a', 2}, {'f', 1}, {'o', 2}, {'f', 2}};
    EXPECT_EQ(notes->calls, meant);
    EXPECT_EQ(notes->ids, (std::vector<std::int32_t>{7, -1}));
    EXPECT_EQ(notes->entering, (std::vector<float>{.5f, 2}));
    std::vector<Foresight::Word> words;
    ASSERT_TRUE(foresight.take(words));
    std::vector<std::int64_t> ticks;
    for (const Foresight::Word& word : words) ticks.push_back(word.tick);
    EXPECT_EQ(ticks, (std::vector<std::int64_t>{0, 1, 2, 2, 3}));
    EXPECT_EQ(foresight.observations(), 3u);
  }
}

TEST(Foresight, OneThatFailsBeforeALayerIsSwitchedOff) {
  for (bool threaded : {false, true}) {
    auto notes = std::make_shared<Early::Notes>();
    Foresight foresight(std::make_unique<Early>(notes, 1), kGeometry, threaded, true);
    Told policy;
    const std::int32_t experts[] = {1, 2};
    const float entering[] = {.5f, 2};
    for (std::int32_t layer = 0; layer < 3; ++layer) {
      foresight.post(Approach{layer, 1, nullptr, entering}, layer);
      foresight.post(Glimpse{layer, 1, 2, experts}, layer + 1);
      foresight.settle(policy);
    }
    EXPECT_EQ(foresight.failure(), "out of ideas");
    EXPECT_EQ(foresight.observations(), 1u);
  }
}

// Notes which streams it was shown.
class StreamNotes final : public Predictor {
 public:
  explicit StreamNotes(std::vector<std::vector<std::int64_t>>& seen) : seen_(seen) {}
  std::string name() const override { return "stream-notes"; }
  void reset() override {}
  void observe(const Glimpse& glimpse) override {
    seen_.emplace_back();
    if (glimpse.streams) seen_.back().assign(glimpse.streams, glimpse.streams + glimpse.tokens);
  }

 private:
  std::vector<std::vector<std::int64_t>>& seen_;
};

TEST(Foresight, ShowsThePredictorWhoseRowsTheyAre) {
  for (bool threaded : {false, true}) {
    std::vector<std::vector<std::int64_t>> seen;
    Foresight foresight(std::make_unique<StreamNotes>(seen), kGeometry, threaded);
    Told policy;
    const std::int32_t experts[] = {1, 2, 3, 4, 5, 6};
    std::vector<std::int64_t> streams = {7, 9, 9};
    foresight.post({0, 3, 2, experts, nullptr, nullptr, streams.data()});
    streams = {1, 1, 1};  // they were copied
    foresight.post({1, 3, 2, experts, nullptr, nullptr});
    foresight.settle(policy);
    const std::vector<std::vector<std::int64_t>> expected = {{7, 9, 9}, {}};
    EXPECT_EQ(seen, expected);
  }
}

// The hidden states of a glimpse as they came, one vector for each row.
class HiddenNotes final : public Predictor {
 public:
  explicit HiddenNotes(std::vector<std::vector<float>>& seen) : seen_(seen) {}
  std::string name() const override { return "hidden-notes"; }
  std::int32_t hidden_width() const override { return kHidden; }
  void reset() override {}
  void observe(const Glimpse& glimpse) override {
    seen_.clear();
    for (std::int32_t row = 0; glimpse.hidden && row < glimpse.hidden_rows; ++row) {
      seen_.emplace_back(glimpse.hidden + row * kHidden, glimpse.hidden + (row + 1) * kHidden);
    }
  }

 private:
  std::vector<std::vector<float>>& seen_;
};

// A layer step of the engine's own: one hidden state for each stream, that of its last row.
TEST(Foresight, EachStreamIsToldItsLastRow) {
  struct Case {
    std::vector<std::int64_t> streams;
    std::vector<std::int32_t> rows;  // whose hidden states are told
  };
  const std::vector<Case> cases = {
      {{}, {4}},                           // nobody said whose rows they are
      {{7, 7, 7}, {4}},                    // of another pass
      {{7, 7, 7, 7, 7}, {4}},              // one stream
      {{9, 9, 7, 7, 8}, {1, 3, 4}},        // packed, as servers do
      {{9, 7, 9, 8, 7}, {2, 4, 3}},        // in any order
      {{1, 2, 3, 4, 5}, {0, 1, 2, 3, 4}},  // all decode
  };
  for (const Case& each : cases) {
    std::mt19937 random(12);
    std::vector<std::vector<float>> seen;
    World world(kGeometry, options_with(24), {}, std::make_unique<HiddenNotes>(seen));
    Batch batch(5, kGeometry, random);
    world.engine->streams(each.streams);
    batch.run(*world.engine, 0);
    world.engine->step(1);  // the next layer begins: the worker is done
    ASSERT_EQ(seen.size(), each.rows.size());
    for (std::size_t i = 0; i < seen.size(); ++i) {
      const auto from = batch.x.begin() + each.rows[i] * kHidden;
      EXPECT_EQ(seen[i], std::vector<float>(from, from + kHidden));
    }
  }
}

TEST(Foresight, ManyPostsBeforeOneSettleLoseNothing) {
  auto notes = std::make_shared<Recency::Notes>();
  Foresight foresight(std::make_unique<Recency>(notes), kGeometry, true);
  const std::int32_t experts[] = {1, 2};
  for (std::int32_t step = 0; step < 500; ++step) {
    foresight.post({step % 3, 1, 2, experts, nullptr, nullptr});
  }
  Told policy;
  foresight.settle(policy);
  ASSERT_EQ(notes->layers.size(), 500u);
  for (std::int32_t step = 0; step < 500; ++step)
    EXPECT_EQ(notes->layers[std::size_t(step)], step % 3);
}

TEST(Foresight, EndsWithWorkStillQueued) {
  const std::int32_t experts[] = {1, 2};
  for (int round = 0; round < 50; ++round) {
    Foresight foresight(std::make_unique<Recency>(std::make_shared<Recency::Notes>()), kGeometry,
                        true);
    for (std::int32_t step = 0; step < 5; ++step) {
      foresight.post({step % 3, 1, 2, experts, nullptr, nullptr});
    }
  }
}

// A failing predictor never stops generation: the engine goes on and tells why.
TEST(Foresight, AFailingPredictorIsSwitchedOffAndTheReasonKept) {
  auto notes = std::make_shared<Recency::Notes>();
  World plain(kGeometry, options_with(5));
  World world(kGeometry, options_with(5), {}, std::make_unique<Recency>(notes, 4));
  std::mt19937 random(3);
  for (int step = 0; step < 12; ++step) {
    Batch batch(1, kGeometry, random);
    Batch same = batch;
    batch.run(*plain.engine, step % 3);
    same.run(*world.engine, step % 3);
    EXPECT_EQ(batch.out, same.out);
  }
  EXPECT_EQ(notes->layers, (std::vector<std::int32_t>{0, 1, 2, 0}));
  EXPECT_NE(world.engine->foresight_failure().find("out of ideas"), std::string::npos);
}

TEST(Foresight, ForwardTellsIdsAndTheRoutersInputOfTheLastToken) {
  auto notes = std::make_shared<Recency::Notes>();
  World world(kGeometry, options_with(24), {}, std::make_unique<Recency>(notes));
  std::mt19937 random(4);
  Batch batch(2, kGeometry, random);
  batch.run(*world.engine, 1);
  world.engine->step(2);  // the next layer begins: the worker is done
  ASSERT_EQ(notes->experts.size(), 1u);
  EXPECT_EQ(notes->experts[0], std::vector<std::int32_t>(batch.ids.begin(), batch.ids.end()));
  EXPECT_EQ(notes->hidden, std::vector<float>(batch.x.begin() + kHidden, batch.x.end()));
  EXPECT_EQ(world.engine->counters().foresight_steps, 1u);
}

// Knows that seven experts take turns, beside one that is always used. Its gaps are the worst there
// can be until it improves; it always has a forecast.
class Fickle final : public Predictor {
 public:
  explicit Fickle(const bool& good) : good_(good) {}
  std::string name() const override { return "fickle"; }
  void reset() override {}
  void observe(const Glimpse& glimpse) override { last_ = glimpse.experts[0]; }
  bool next_use(std::int32_t, std::span<float> gaps) override {
    for (std::int32_t e = 0; e < 7; ++e) {
      const auto gap = float((e - last_ + 6) % 7 + 1);
      gaps[e] = good_ ? gap : 8 - gap;
    }
    gaps[7] = good_ ? 1 : 8;
    return true;
  }
  void forecast(std::int32_t layer, std::vector<Forecast>& out) override {
    out.push_back({{(layer + 1) % 3, 1}, .9f, 1});
  }

 private:
  const bool& good_;
  std::int32_t last_ = 0;
};

TEST(Foresight, WhileDistrustedItTellsNoGapsAndHandsOutNoForecasts) {
  for (bool threaded : {false, true}) {
    bool good = false;
    Foresight foresight(std::make_unique<Fickle>(good), kGeometry, threaded, true,
                        std::make_unique<Shadow>(kGeometry, 9, PoolScope::global));
    Told policy;
    std::vector<Foresight::Word> words;
    std::uint64_t distrusted = 0, lost = 0, found = 0;
    for (std::int32_t step = 0; step < 6000; ++step) {
      good = step >= 1500;  // the worker is idle: everything posted has been settled
      const std::int32_t experts[] = {step / 3 % 7, 7};
      policy.heard.clear();
      foresight.post({step % 3, 1, 2, experts, nullptr, nullptr}, step);
      foresight.settle(policy);
      const bool doubted = foresight.distrusted() > distrusted;
      distrusted = foresight.distrusted();
      ASSERT_EQ(policy.heard.size(), doubted ? 0u : 1u) << "step " << step;
      ASSERT_EQ(foresight.take(words), !doubted);
      ASSERT_EQ(words.size(), doubted ? 0u : 1u);
      if (!doubted) {
        EXPECT_EQ(words[0].tick, step);
        EXPECT_EQ(words[0].forecasts.size(), 1u);
      }
      if (step < 1500) lost += doubted;
      if (step >= 5000) found += !doubted;
    }
    EXPECT_GT(lost, 1000u);
    EXPECT_EQ(found, 1000u);
  }
}

TEST(Foresight, NobodyAsksForForecastsThatNobodyWants) {
  bool good = true;
  Foresight foresight(std::make_unique<Fickle>(good), kGeometry, false);
  const std::int32_t experts[] = {1, 2};
  foresight.post({0, 1, 2, experts, nullptr, nullptr}, 1);
  std::vector<Foresight::Word> words(3);
  EXPECT_FALSE(foresight.take(words));
  EXPECT_TRUE(words.empty());
}

TEST(Foresight, WordsAreHandedOutOnceAndInOrder) {
  bool good = true;
  Foresight foresight(std::make_unique<Fickle>(good), kGeometry, true, true);
  const std::int32_t experts[] = {1, 2};
  std::vector<Foresight::Word> words;
  std::int64_t next = 0;
  Told policy;
  for (std::int32_t step = 0; step < 300; ++step) {
    foresight.post({step % 3, 1, 2, experts, nullptr, nullptr}, step);
    if (step % 7 == 6) foresight.settle(policy);
    foresight.take(words);  // whatever there is by now
    for (const Foresight::Word& word : words) EXPECT_EQ(word.tick, next++);
  }
  foresight.settle(policy);
  foresight.take(words);
  for (const Foresight::Word& word : words) EXPECT_EQ(word.tick, next++);
  EXPECT_EQ(next, 300);
  EXPECT_FALSE(foresight.take(words));
}

}  // namespace
}  // namespace prophet
