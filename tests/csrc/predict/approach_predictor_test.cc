// Predictors that speak before a layer runs: against arithmetic in double, and what they refuse.
#include "predict/approach_predictor.h"

#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <memory>

#include "core/error.h"
#include "predict/layer_mlp.h"
#include "predict/small_bank.h"
#include "predict/text_predictor.h"

namespace prophet {
namespace {

constexpr std::int32_t kLayers = 3, kExperts = 5, kTopK = 2, kWidth = 6;
constexpr Geometry kGeometry{kLayers, kExperts, kTopK};

std::shared_ptr<LayerMlpWeights> before_attention() {
  small_bank::Random random;
  auto w = std::make_shared<LayerMlpWeights>();
  w->geometry = kGeometry;
  w->name = "pre-attention";
  w->stride = 0;
  w->hidden = 4;
  w->width = kWidth;
  w->enter = random.floats(kLayers * 4 * kWidth, 1);
  w->enter_bias = random.floats(kLayers * kWidth, 1);
  w->leave = random.floats(kLayers * kWidth * kExperts, 1);
  w->leave_bias = random.floats(kLayers * kExperts, 1);
  return w;
}

std::shared_ptr<TextWeights> of_text() {
  small_bank::Random random;
  auto w = std::make_shared<TextWeights>();
  w->geometry = kGeometry;
  w->name = "expertflow";
  w->vocabulary = 7;
  w->embedding = 4;
  w->width = kWidth;
  w->embed = random.floats(8 * 4, 1);
  w->input = random.floats(4 * 3 * kWidth, .5f);
  w->input_bias = random.floats(3 * kWidth, .5f);
  w->recur = random.floats(kWidth * 3 * kWidth, .5f);
  w->recur_bias = random.floats(3 * kWidth, .5f);
  w->leave = random.floats((kWidth + 4) * kLayers * kExperts, .5f);
  w->leave_bias = random.floats(kLayers * kExperts, .5f);
  return w;
}

double sigmoid(double v) { return 1 / (1 + std::exp(-v)); }

// [layers * experts] in double, of the last of `ids`, all read from the beginning.
std::vector<double> by_hand(const TextWeights& w, const std::vector<std::int32_t>& ids) {
  const std::size_t D = 4, H = kWidth, N = kLayers * kExperts;
  std::vector<double> h(H), x(D), p(N);
  for (std::int32_t id : ids) {
    const std::size_t row = id >= 0 && id < w.vocabulary ? std::size_t(id) : 7;
    for (std::size_t i = 0; i < D; ++i) x[i] = w.embed[row * D + i];
    std::vector<double> a(w.input_bias.begin(), w.input_bias.end());
    std::vector<double> b(w.recur_bias.begin(), w.recur_bias.end());
    for (std::size_t j = 0; j < 3 * H; ++j) {
      for (std::size_t i = 0; i < D; ++i) a[j] += x[i] * w.input[i * 3 * H + j];
      for (std::size_t i = 0; i < H; ++i) b[j] += h[i] * w.recur[i * 3 * H + j];
    }
    for (std::size_t i = 0; i < H; ++i) {
      const double r = sigmoid(a[i] + b[i]), z = sigmoid(a[H + i] + b[H + i]);
      h[i] = (1 - z) * std::tanh(a[2 * H + i] + r * b[2 * H + i]) + z * h[i];
    }
  }
  for (std::size_t j = 0; j < N; ++j) {
    double sum = w.leave_bias[j];
    for (std::size_t i = 0; i < H; ++i) sum += h[i] * w.leave[i * N + j];
    for (std::size_t i = 0; i < D; ++i) sum += x[i] * w.leave[(H + i) * N + j];
    p[j] = sigmoid(sum);
  }
  return p;
}

// What is said of each layer and expert when `ids` are about to be fed; -1 where nothing is.
std::vector<double> told(Predictor& predictor, const std::vector<std::int32_t>& ids) {
  std::vector<double> p(kLayers * kExperts, -1);
  if (!predictor.approach({0, std::int32_t(ids.size()), ids.data()})) return p;
  std::vector<Forecast> out;
  predictor.forecast(kLayers - 1, out);
  for (const Forecast& one : out) {
    EXPECT_EQ(one.horizon, one.key.layer + 1);
    p[std::size_t(kGeometry.index(one.key))] = one.p;
  }
  return p;
}

void run(Predictor& predictor) {
  const std::int32_t chosen[] = {0, 1};
  for (std::int32_t layer = 0; layer < kLayers; ++layer) {
    EXPECT_TRUE(layer == 0 || !predictor.approach({layer, 1}));
    predictor.observe({layer, 1, kTopK, chosen});
    std::vector<Forecast> out;
    predictor.forecast(layer, out);
    EXPECT_THAT(out, ::testing::IsEmpty()) << "routers tell it nothing";
  }
}

void expect_near(const std::vector<double>& said, const std::vector<double>& meant) {
  for (std::size_t i = 0; i < said.size(); ++i) {
    if (meant[i] < 0.0101) continue;  // not handed over
    EXPECT_NEAR(said[i], meant[i], 1e-5) << i;
  }
}

TEST(TextPredictor, ReadsTheTextSoFar) {
  const auto weights = of_text();
  const auto predictor = make_text_predictor(weights);
  EXPECT_TRUE(predictor->reads_tokens());
  std::vector<std::int32_t> text;
  for (std::int32_t token : {3, 0, 6, 7, -1, 1 << 30, 2, 2}) {  // some of them unknown
    text.push_back(token);
    expect_near(told(*predictor, {token}), by_hand(*weights, text));
    run(*predictor);
  }
  predictor->reset();
  expect_near(told(*predictor, {3}), by_hand(*weights, {3}));
}

TEST(TextPredictor, OfSeveralTokensItTellsWhatAnyAsks) {
  const auto weights = of_text();
  const auto predictor = make_text_predictor(weights);
  const auto one = by_hand(*weights, {4}), two = by_hand(*weights, {4, 5});
  std::vector<double> any;
  for (std::size_t i = 0; i < one.size(); ++i) any.push_back(1 - (1 - one[i]) * (1 - two[i]));
  expect_near(told(*predictor, {4, 5}), any);
}

TEST(TextPredictor, OfALongPromptThereIsNoWordAndItsEndIsRemembered) {
  const auto weights = of_text();
  const auto predictor = make_text_predictor(weights);
  std::vector<std::int32_t> prompt;
  for (int i = 0; i < 1000; ++i) prompt.push_back(i % 7);
  for (double p : told(*predictor, prompt)) EXPECT_EQ(p, -1);
  prompt.erase(prompt.begin(), prompt.end() - TextWeights::kMostRead);
  prompt.push_back(1);
  expect_near(told(*predictor, {1}), by_hand(*weights, prompt));
}

TEST(TextPredictor, SaysNothingWithoutIds) {
  const auto predictor = make_text_predictor(of_text());
  EXPECT_FALSE(predictor->approach({0, 1}));
  std::vector<Forecast> out;
  predictor->forecast(kLayers - 1, out);
  EXPECT_THAT(out, ::testing::IsEmpty());
}

TEST(PreAttention, NamesTheExpertsOfTheLayerThatIsEntered) {
  const auto w = before_attention();
  const auto predictor = make_layer_mlp(w);
  EXPECT_EQ(predictor->entering_width(), 4);
  EXPECT_EQ(predictor->hidden_width(), 0);
  const float entering[] = {3, -1, .5f, 200};
  double squares = 1e-6;
  for (float v : entering) squares += double(v) * v / 4;
  const std::int32_t chosen[] = {0, 1};
  for (std::int32_t layer = 0; layer < kLayers; ++layer) {
    ASSERT_TRUE(predictor->approach({layer, 1, nullptr, entering}));
    std::vector<Forecast> out;
    predictor->forecast((layer + kLayers - 1) % kLayers, out);
    std::vector<double> said(kExperts, 0);
    for (const Forecast& one : out) {
      EXPECT_EQ(one.key.layer, layer);
      EXPECT_EQ(one.horizon, 1);
      said[std::size_t(one.key.expert)] = one.p;
    }
    for (std::size_t e = 0; e < kExperts; ++e) {
      double sum = w->leave_bias[std::size_t(layer) * kExperts + e];
      for (std::size_t d = 0; d < kWidth; ++d) {
        double h = w->enter_bias[std::size_t(layer) * kWidth + d];
        for (std::size_t i = 0; i < 4; ++i) {
          h += entering[i] / std::sqrt(squares) *
               w->enter[(std::size_t(layer) * 4 + i) * kWidth + d];
        }
        sum += std::max(h, 0.0) * w->leave[(std::size_t(layer) * kWidth + d) * kExperts + e];
      }
      EXPECT_TRUE(sigmoid(sum) < 0.0101 || std::abs(said[e] - sigmoid(sum)) < 1e-5);
    }
    predictor->observe({layer, 1, kTopK, chosen});
  }
}

TEST(PreAttention, SaysNothingOfAStateThatIsNone) {
  const auto predictor = make_layer_mlp(before_attention());
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN(),
                  kInfinity = std::numeric_limits<float>::infinity();
  for (float odd : {kNan, kInfinity}) {
    const float entering[] = {1, odd, 1, 1};
    EXPECT_FALSE(predictor->approach({1, 1, nullptr, entering}));
  }
  EXPECT_FALSE(predictor->approach({1, 1}));
  const float nothing[] = {0, 0, 0, 0}, huge[] = {1e38f, -1e38f, 1e38f, 0};
  EXPECT_TRUE(predictor->approach({1, 1, nullptr, nothing}));
  EXPECT_TRUE(predictor->approach({1, 1, nullptr, huge}));
}

TEST(ApproachPredictors, SpeakOfTheStepBeforeAlone) {
  const std::int32_t ids[] = {1}, chosen[] = {0, 1};
  const auto predictor = make_text_predictor(of_text());
  std::vector<Forecast> out;
  EXPECT_THROW(predictor->forecast(kLayers - 1, out), StateError);
  EXPECT_TRUE(predictor->approach({0, 1, ids}));
  EXPECT_THROW(predictor->forecast(0, out), StateError);
  predictor->forecast(kLayers - 1, out);
  EXPECT_FALSE(out.empty());
  predictor->observe({0, 1, kTopK, chosen});
  EXPECT_THROW(predictor->forecast(kLayers - 1, out), StateError);
  for (std::int32_t layer : {-1, kLayers}) {
    EXPECT_THROW(predictor->approach({layer, 1, ids}), InvalidArgument);
    EXPECT_THROW(predictor->observe({layer, 1, kTopK, chosen}), InvalidArgument);
  }
  EXPECT_THROW(predictor->approach({0, 0, ids}), InvalidArgument);
}

template <typename Weights>
using Change = void (*)(Weights&);

TEST(ApproachPredictors, RefuseWeightsThatFitNothing) {
  const Change<TextWeights> of_a_text[] = {
      [](TextWeights& w) { w.vocabulary = 6; },   [](TextWeights& w) { w.width = 0; },
      [](TextWeights& w) { w.embedding = -1; },   [](TextWeights& w) { w.geometry.layers = 0; },
      [](TextWeights& w) { w.embed.pop_back(); }, [](TextWeights& w) { w.recur_bias[0] = NAN; },
  };
  for (auto change : of_a_text) {
    const auto w = of_text();
    change(*w);
    EXPECT_THROW(make_text_predictor(w), InvalidArgument);
  }
  const Change<LayerMlpWeights> of_a_state[] = {
      [](LayerMlpWeights& w) { w.hidden = 0; },
      [](LayerMlpWeights& w) { w.context = 1; },
      [](LayerMlpWeights& w) { w.stride = -1; },
      [](LayerMlpWeights& w) { w.geometry.top_k = 9; },
      [](LayerMlpWeights& w) { w.leave.push_back(0); },
  };
  for (auto change : of_a_state) {
    const auto w = before_attention();
    change(*w);
    EXPECT_THROW(make_layer_mlp(w), InvalidArgument);
  }
}

}  // namespace
}  // namespace prophet
