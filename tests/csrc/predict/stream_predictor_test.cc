#include "predict/stream_predictor.h"

#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <random>

#include "predict/bank_predictor.h"
#include "predict/small_bank.h"

namespace prophet {
namespace {

// A layer step of several streams: rows of each, in any order of streams.
struct Step {
  std::int32_t layer = 0;
  std::vector<std::int64_t> streams;
  std::vector<std::int32_t> experts;
  std::vector<float> weights;
};

class Streams : public testing::Test {
 protected:
  Streams()
      : network_(std::make_shared<const BankNetwork>(small_bank::config(), small_bank::weights())),
        geometry_(network_->config().geometry) {}

  std::unique_ptr<Predictor> bank() const { return std::make_unique<BankPredictor>(network_); }
  StreamPredictor make() const {
    return StreamPredictor([this] { return bank(); }, geometry_.experts_per_layer);
  }

  Step draw(std::int32_t layer, std::vector<std::int64_t> streams) {
    Step step{layer, std::move(streams), {}, {}};
    for (std::size_t row = 0; row < step.streams.size(); ++row) {
      std::vector<std::int32_t> all(std::size_t(geometry_.experts_per_layer));
      for (std::size_t e = 0; e < all.size(); ++e) all[e] = std::int32_t(e);
      std::shuffle(all.begin(), all.end(), dice_);
      for (std::int32_t k = 0; k < geometry_.top_k; ++k) {
        step.experts.push_back(all[std::size_t(k)]);
        step.weights.push_back(1.0f / float(geometry_.top_k));
      }
    }
    return step;
  }

  Glimpse glimpse(const Step& step) const {
    return {step.layer,          std::int32_t(step.streams.size()),
            geometry_.top_k,     step.experts.data(),
            step.weights.data(), nullptr,
            step.streams.data()};
  }

  // What one stream's rows of a step would be alone.
  Step only(const Step& step, std::int64_t stream) const {
    Step out{step.layer, {}, {}, {}};
    const std::size_t k = std::size_t(geometry_.top_k);
    for (std::size_t row = 0; row < step.streams.size(); ++row) {
      if (step.streams[row] != stream) continue;
      out.streams.push_back(stream);
      for (std::size_t i = row * k; i < (row + 1) * k; ++i) {
        out.experts.push_back(step.experts[i]);
        out.weights.push_back(step.weights[i]);
      }
    }
    return out;
  }

  Glimpse unnamed(const Step& step) const {
    Glimpse out = glimpse(step);
    out.streams = nullptr;
    return out;
  }

  std::shared_ptr<const BankNetwork> network_;
  Geometry geometry_;
  std::mt19937 dice_{7};
};

std::vector<float> gaps_of(Predictor& predictor, std::int32_t layer, std::size_t experts) {
  std::vector<float> gaps(experts, -1);
  EXPECT_TRUE(predictor.next_use(layer, gaps));
  return gaps;
}

std::vector<Forecast> forecasts_of(Predictor& predictor, std::int32_t layer) {
  std::vector<Forecast> out;
  predictor.forecast(layer, out);
  return out;
}

TEST_F(Streams, OneStreamIsTheInnerPredictorToTheBit) {
  for (bool named : {false, true}) {
    StreamPredictor streams = make();
    const auto alone = bank();
    for (int turn = 0; turn < 20; ++turn) {
      for (std::int32_t layer = 0; layer < geometry_.layers; ++layer) {
        const Step step = draw(layer, std::vector<std::int64_t>(turn == 0 ? 5u : 1u, 42));
        streams.observe(named ? glimpse(step) : unnamed(step));
        alone->observe(unnamed(step));
        const std::size_t experts = std::size_t(geometry_.experts_per_layer);
        EXPECT_EQ(gaps_of(streams, layer, experts), gaps_of(*alone, layer, experts));
        const auto said = forecasts_of(streams, layer), expected = forecasts_of(*alone, layer);
        ASSERT_EQ(said.size(), expected.size());
        for (std::size_t i = 0; i < said.size(); ++i) {
          EXPECT_EQ(said[i].key, expected[i].key);
          EXPECT_EQ(said[i].p, expected[i].p);
          EXPECT_EQ(said[i].horizon, expected[i].horizon);
        }
      }
    }
  }
}

TEST_F(Streams, EachSeesItsOwnRowsAndTheUnionIsTold) {
  StreamPredictor streams = make();
  std::map<std::int64_t, std::unique_ptr<Predictor>> alone;
  for (std::int64_t id : {3, 5, 9}) alone[id] = bank();
  const std::size_t experts = std::size_t(geometry_.experts_per_layer);
  for (int turn = 0; turn < 12; ++turn) {
    for (std::int32_t layer = 0; layer < geometry_.layers; ++layer) {
      const Step step = draw(layer, {5, 3, 3, 9, 5});
      streams.observe(glimpse(step));
      std::vector<double> nobody(experts, 1);
      std::map<std::pair<std::int32_t, ExpertKey>, double> none;
      for (auto& [id, predictor] : alone) {
        const Step own = only(step, id);
        predictor->observe(unnamed(own));
        const auto gaps = gaps_of(*predictor, layer, experts);
        for (std::size_t e = 0; e < experts; ++e) nobody[e] *= 1 - 1 / double(gaps[e]);
        for (const Forecast& one : forecasts_of(*predictor, layer)) {
          none.try_emplace({one.horizon, one.key}, 1).first->second *= 1 - double(one.p);
        }
      }
      const auto said = gaps_of(streams, layer, experts);
      for (std::size_t e = 0; e < experts; ++e) {
        EXPECT_GE(said[e], 1);
        EXPECT_NEAR(1 / said[e], 1 - nobody[e], 1e-5);
      }
      const auto forecasts = forecasts_of(streams, layer);
      ASSERT_EQ(forecasts.size(), none.size());
      for (const Forecast& one : forecasts) {
        ASSERT_TRUE(none.contains({one.horizon, one.key}));
        EXPECT_NEAR(one.p, 1 - none.at({one.horizon, one.key}), 1e-5);
        EXPECT_LE(one.p, 1);
      }
    }
  }
}

// Says which hidden state it was shown last.
class Hearing final : public Predictor {
 public:
  explicit Hearing(std::vector<std::optional<float>>& heard) : heard_(heard) {}
  std::string name() const override { return "hearing"; }
  std::int32_t hidden_width() const override { return 2; }
  void reset() override {}
  void observe(const Glimpse& glimpse) override {
    heard_.push_back(glimpse.hidden ? std::optional(glimpse.hidden[1]) : std::nullopt);
  }

 private:
  std::vector<std::optional<float>>& heard_;
};

TEST_F(Streams, EachHearsItsOwnHiddenState) {
  std::vector<std::optional<float>> heard;
  StreamPredictor streams([&] { return std::make_unique<Hearing>(heard); },
                          geometry_.experts_per_layer);
  const Step step = draw(0, {5, 3, 3, 9, 5});  // streams in the order of their first rows: 5, 3, 9
  const std::vector<float> hidden = {0, 50, 0, 30, 0, 90};
  using Heard = std::vector<std::optional<float>>;
  for (const auto& [rows, expected] : std::vector<std::pair<std::int32_t, Heard>>{
           {3, {50, 30, 90}},
           {1, {50, std::nullopt, std::nullopt}},  // of the last token alone, which is of stream 5
           {2, {50, std::nullopt, std::nullopt}}}) {
    Glimpse seen = glimpse(step);
    seen.hidden = hidden.data();
    seen.hidden_rows = rows;
    heard.clear();
    streams.observe(seen);
    EXPECT_EQ(heard, expected) << rows << " rows";
  }
  heard.clear();
  streams.observe(glimpse(step));
  EXPECT_EQ(heard, Heard(3)) << "nothing was told";
}

TEST_F(Streams, WhoHasNoRowInAPassIsForgotten) {
  StreamPredictor streams = make();
  auto pass = [&](const std::vector<std::int64_t>& ids) {
    for (std::int32_t layer = 0; layer < geometry_.layers; ++layer) {
      streams.observe(glimpse(draw(layer, ids)));
    }
  };
  pass({1, 2, 3});
  EXPECT_EQ(streams.streams(), 3u);
  pass({1, 3});
  EXPECT_EQ(streams.streams(), 2u);
  for (std::int64_t id = 10; id < 500; ++id) pass({1, id});
  EXPECT_EQ(streams.streams(), 2u);
  streams.reset();
  EXPECT_EQ(streams.streams(), 0u);
}

TEST_F(Streams, AStreamThatComesBackBeginsAnew) {
  StreamPredictor streams = make();
  const std::size_t experts = std::size_t(geometry_.experts_per_layer);
  for (int turn = 0; turn < 5; ++turn) {
    for (std::int32_t layer = 0; layer < geometry_.layers; ++layer) {
      streams.observe(glimpse(draw(layer, {turn < 4 ? 1 : 2})));
    }
  }
  const auto fresh = bank();
  const Step step = draw(0, {1});
  streams.observe(glimpse(step));
  fresh->observe(unnamed(step));
  EXPECT_EQ(gaps_of(streams, 0, experts), gaps_of(*fresh, 0, experts));
}

}  // namespace
}  // namespace prophet
