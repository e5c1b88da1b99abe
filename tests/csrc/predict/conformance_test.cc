// What every predictor promises in predict/predictor.h. A new one is enrolled by a line in
// `kEnrolled`.
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "core/error.h"
#include "predict/bank_predictor.h"
#include "predict/joint_predictor.h"
#include "predict/layer_mlp.h"
#include "predict/narrow_predictor.h"
#include "predict/predictor_registry.h"
#include "predict/small_bank.h"
#include "predict/small_transformer.h"
#include "predict/text_predictor.h"

namespace prophet {
namespace {

constexpr std::int32_t kLayers = small_bank::kLayers, kExperts = small_bank::kExperts,
                       kTopK = small_bank::kTopK, kHidden = small_bank::kHidden;
constexpr Geometry kGeometry{kLayers, kExperts, kTopK};

PredictorInputs routers() {
  small_bank::Random random;
  PredictorInputs inputs;
  inputs.hidden = kHidden;
  inputs.router = random.floats(kLayers * kExperts * kHidden, 1);
  inputs.router_bias = random.floats(kLayers * kExperts, 0.3f);
  inputs.norm = random.floats(kLayers * kHidden, 0.2f, 1);
  return inputs;
}

struct Enrolled {
  std::string name;
  std::function<std::unique_ptr<Predictor>()> make;
};

std::unique_ptr<Predictor> make_bank() {
  return std::make_unique<BankPredictor>(small_bank::config(), small_bank::weights());
}

// With all it may read.
std::unique_ptr<Predictor> make_mlp() {
  small_bank::Random random;
  auto w = std::make_shared<LayerMlpWeights>();
  w->geometry = kGeometry;
  w->name = "mlp";
  w->stride = 2;
  w->context = 2;
  w->hidden = kHidden;
  w->width = 6;
  constexpr int kFrom = kLayers - 2;
  w->affinity = random.floats(kFrom * kExperts * kExperts, 1);
  w->enter = random.floats(kFrom * w->inputs() * 6, 1);
  w->enter_bias = random.floats(kFrom * 6, 1);
  w->leave = random.floats(kFrom * 6 * kExperts, 1);
  w->leave_bias = random.floats(kFrom * kExperts, 1);
  return make_layer_mlp(std::move(w));
}

std::unique_ptr<Predictor> make_transformer(TransformerConfig config) {
  return std::make_unique<TransformerPredictor>(
      std::make_shared<const TransformerNetwork>(config, small_transformer::weights(config)));
}

// Reads what enters a layer.
std::unique_ptr<Predictor> make_before_attention() {
  small_bank::Random random;
  auto w = std::make_shared<LayerMlpWeights>();
  w->geometry = kGeometry;
  w->name = "pre-attention";
  w->stride = 0;
  w->hidden = kHidden;
  w->width = 6;
  w->enter = random.floats(kLayers * kHidden * 6, 1);
  w->enter_bias = random.floats(kLayers * 6, 1);
  w->leave = random.floats(kLayers * 6 * kExperts, 1);
  w->leave_bias = random.floats(kLayers * kExperts, 1);
  return make_layer_mlp(std::move(w));
}

// Reads the tokens fed.
std::unique_ptr<Predictor> make_text() {
  small_bank::Random random;
  auto w = std::make_shared<TextWeights>();
  w->geometry = kGeometry;
  w->name = "text";
  w->vocabulary = 20;
  w->embedding = 5;
  w->width = 6;
  w->embed = random.floats(21 * 5, 1);
  w->input = random.floats(5 * 18, 1);
  w->input_bias = random.floats(18, 1);
  w->recur = random.floats(6 * 18, 1);
  w->recur_bias = random.floats(18, 1);
  w->leave = random.floats(11 * kLayers * kExperts, 1);
  w->leave_bias = random.floats(kLayers * kExperts, 1);
  return make_text_predictor(std::move(w));
}

const std::vector<Enrolled> kEnrolled = {
    {"pre-attention", make_before_attention},
    {"text", make_text},
    {"transformer", [] { return make_transformer(small_transformer::config()); }},
    {"transformer",  // of routing alone
     [] {
       TransformerConfig c = small_transformer::config();
       c.hidden = 0;
       return make_transformer(c);
     }},
    {"mlp", make_mlp},
    {"bank", make_bank},
    {"popularity", [] { return make_predictor("popularity", kGeometry); }},
    {"previous-token", [] { return make_predictor("previous-token", kGeometry); }},
    {"markov", [] { return make_predictor("markov", kGeometry); }},
    {"activation-matrix", [] { return make_predictor("activation-matrix", kGeometry); }},
    {"expert-map", [] { return make_predictor("expert-map", kGeometry); }},
    {"markov",  // narrowed
     [] { return std::make_unique<NarrowPredictor>(make_predictor("markov", kGeometry), kTopK); }},
    {"next-gate", [] { return make_predictor("next-gate", kGeometry, routers()); }},
    {"bank+next-gate",
     [] {
       return std::make_unique<JointPredictor>(kGeometry, make_bank(),
                                               make_predictor("next-gate", kGeometry, routers()));
     }},
};

struct Turn {
  std::int32_t token = 0;
  std::vector<std::int32_t> experts;
  std::vector<float> weights, hidden, entering;
};
using Trace = std::vector<Turn>;  // [tokens * layers], forward order

Trace make_trace(std::int32_t tokens, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> real(0.1f, 1);
  Trace trace(std::size_t(tokens) * kLayers);
  for (Turn& turn : trace) {
    std::set<std::int32_t> chosen;
    while (chosen.size() < kTopK) chosen.insert(std::int32_t(random() % kExperts));
    turn.experts.assign(chosen.begin(), chosen.end());
    for (int k = 0; k < kTopK; ++k) turn.weights.push_back(real(random));
    for (int h = 0; h < kHidden; ++h) turn.hidden.push_back(real(random) - .5f);
    for (int h = 0; h < kHidden; ++h) turn.entering.push_back(real(random) - .5f);
    turn.token = std::int32_t(random() % 24);
  }
  return trace;
}

bool same(const std::vector<Forecast>& a, const std::vector<Forecast>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                    [](const Forecast& one, const Forecast& two) {
                      return one.key == two.key && one.p == two.p && one.horizon == two.horizon;
                    });
}

// All that a predictor says before and after one step.
struct Said {
  bool told = false;
  std::vector<float> gaps = std::vector<float>(kExperts, -1);
  std::vector<Forecast> before, forecasts;

  bool operator==(const Said& other) const {
    return told == other.told && gaps == other.gaps && same(before, other.before) &&
           same(forecasts, other.forecasts);
  }
};

Said ask(Predictor& predictor, std::int32_t layer) {
  Said said;
  said.told = predictor.next_use(layer, said.gaps);
  predictor.forecast(layer, said.forecasts);
  return said;
}

Said step(Predictor& predictor, const Trace& trace, std::size_t at) {
  const Turn& turn = trace[at];
  const auto layer = std::int32_t(at % kLayers);
  std::vector<Forecast> before;
  if (predictor.approach({layer, 1, layer == 0 ? &turn.token : nullptr,
                          predictor.entering_width() > 0 ? turn.entering.data() : nullptr})) {
    predictor.forecast((layer + kLayers - 1) % kLayers, before);
  }
  predictor.observe(
      {layer, 1, kTopK, turn.experts.data(), turn.weights.data(), turn.hidden.data()});
  Said said = ask(predictor, layer);
  said.before = std::move(before);
  return said;
}

// What was said when `layer` was the last to have run.
void expect_sane(const std::vector<Forecast>& forecasts, std::int32_t layer) {
  std::set<ExpertKey> keys;
  for (const Forecast& one : forecasts) {
    EXPECT_TRUE(one.p >= kLeastForecast && one.p <= 1) << one.p;
    EXPECT_GT(one.horizon, 0);
    EXPECT_EQ(one.key.layer, (layer + one.horizon) % kLayers);
    EXPECT_LE(one.horizon, kLayers);
    EXPECT_TRUE(kGeometry.contains(one.key));
    EXPECT_TRUE(keys.insert(one.key).second) << "an expert was forecast twice";
  }
}

void expect_sane(const Said& said, std::int32_t layer) {
  for (float gap : said.gaps) {
    if (said.told) {
      EXPECT_TRUE(gap >= 1 && std::isfinite(gap)) << gap;
    } else {
      EXPECT_EQ(gap, -1) << "no opinion, but gaps were touched";
    }
  }
  expect_sane(said.forecasts, layer);
  expect_sane(said.before, (layer + kLayers - 1) % kLayers);
  for (const Forecast& one : said.before) {
    EXPECT_LE(one.horizon, kLayers - layer) << "of the pass that is coming alone";
  }
}

class PredictorConformance : public ::testing::TestWithParam<Enrolled> {
 protected:
  std::unique_ptr<Predictor> make() const { return GetParam().make(); }
};

TEST_P(PredictorConformance, HasItsNameAndIsDeterministicAndSane) {
  const auto a = make(), b = make();
  EXPECT_EQ(a->name(), GetParam().name);
  const Trace trace = make_trace(40, 1);
  bool spoke = false;
  for (std::size_t at = 0; at < trace.size(); ++at) {
    const Said said = step(*a, trace, at);
    expect_sane(said, std::int32_t(at % kLayers));
    ASSERT_EQ(said, step(*b, trace, at));
    spoke |= !said.forecasts.empty() || !said.before.empty();
  }
  EXPECT_TRUE(spoke);
}

// Change everything after a step: what was said up to it must not change.
TEST_P(PredictorConformance, KnowsNothingOfTheFuture) {
  const Trace trace = make_trace(8, 6), other = make_trace(8, 7);
  for (std::size_t cut : {std::size_t(0), std::size_t(5), std::size_t(14), std::size_t(22)}) {
    Trace tampered = trace;
    std::copy(other.begin() + std::ptrdiff_t(cut) + 1, other.end(),
              tampered.begin() + std::ptrdiff_t(cut) + 1);
    const auto a = make(), b = make();
    bool differs_later = false;
    for (std::size_t at = 0; at < trace.size(); ++at) {
      const Said one = step(*a, trace, at), two = step(*b, tampered, at);
      if (at <= cut) {
        ASSERT_EQ(one, two) << "step " << at;
      } else {
        differs_later |= !(one == two);
      }
    }
    EXPECT_TRUE(differs_later);
  }
}

TEST_P(PredictorConformance, ResetForgetsEverything) {
  const Trace past = make_trace(6, 3), trace = make_trace(6, 8);
  const auto fresh = make(), used = make();
  for (std::size_t at = 0; at < past.size() - 2; ++at) step(*used, past, at);
  used->reset();
  for (std::size_t at = 0; at < trace.size(); ++at) {
    ASSERT_EQ(step(*fresh, trace, at), step(*used, trace, at)) << at;
  }
}

TEST_P(PredictorConformance, SpeaksOfTheLayerObservedLastAlone) {
  const auto predictor = make();
  std::vector<float> gaps(kExperts);
  std::vector<Forecast> out;
  EXPECT_THROW(predictor->next_use(0, gaps), StateError);
  EXPECT_THROW(predictor->forecast(0, out), StateError);
  step(*predictor, make_trace(1, 1), 0);
  EXPECT_THROW(predictor->next_use(1, gaps), StateError);
  EXPECT_THROW(predictor->forecast(1, out), StateError);
  EXPECT_TRUE(out.empty());
}

TEST_P(PredictorConformance, BeyondTheLastLayerThereIsOnlyTheNextTurn) {
  const auto predictor = make();
  const Trace trace = make_trace(3, 1);
  for (std::size_t at = 0; at < trace.size(); ++at) {
    const Said said = step(*predictor, trace, at);
    const auto left = std::int32_t(kLayers - 1 - at % kLayers);  // layers of this token
    for (const Forecast& one : said.forecasts) {
      EXPECT_TRUE(one.horizon <= left || one.horizon == kLayers) << one.horizon;
    }
  }
}

TEST_P(PredictorConformance, RefusesWhatIsNoStep) {
  const auto predictor = make();
  const std::int32_t ids[] = {0, 1, 2};
  EXPECT_THROW(predictor->observe({kLayers, 1, kTopK, ids, nullptr, nullptr}), InvalidArgument);
  EXPECT_THROW(predictor->observe({-1, 1, kTopK, ids, nullptr, nullptr}), InvalidArgument);
  EXPECT_THROW(predictor->observe({0, 0, kTopK, ids, nullptr, nullptr}), InvalidArgument);
  EXPECT_THROW(predictor->observe({0, -3, kTopK, ids, nullptr, nullptr}), InvalidArgument);
  const Trace trace = make_trace(2, 4);  // and goes on unharmed
  const auto fresh = make();
  for (std::size_t at = 0; at < trace.size(); ++at) {
    ASSERT_EQ(step(*predictor, trace, at), step(*fresh, trace, at));
  }
}

TEST_P(PredictorConformance, TakesWhateverARouterMaySay) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN(),
                  kInfinity = std::numeric_limits<float>::infinity();
  const auto predictor = make();
  std::mt19937 random(9);
  const std::int32_t odd_ids[] = {std::numeric_limits<std::int32_t>::min(), -1, 0, 3, 3, kExperts,
                                  std::numeric_limits<std::int32_t>::max()};
  const float odd_floats[] = {kNan, kInfinity, -kInfinity, -1, 0, 0.5f, 1e30f, 1e-40f};
  for (int round = 0; round < 3000; ++round) {
    const auto tokens = std::int32_t(1 + random() % 5), top_k = std::int32_t(random() % 6);
    std::vector<std::int32_t> ids(std::size_t(tokens * top_k) + 1);
    std::vector<float> weights(ids.size()), hidden(kHidden);
    for (auto& id : ids) {
      id = random() % 4 ? std::int32_t(random() % kExperts) : odd_ids[random() % 7];
    }
    for (float& weight : weights) weight = odd_floats[random() % 8];
    for (float& v : hidden) v = random() % 8 ? 0.5f : odd_floats[random() % 8];
    const auto layer = std::int32_t(random() % kLayers);
    predictor->observe({layer, tokens, top_k, ids.data(), random() % 2 ? weights.data() : nullptr,
                        random() % 2 ? hidden.data() : nullptr});
    expect_sane(ask(*predictor, layer), layer);
  }
}

TEST_P(PredictorConformance, TakesAPromptOfThousandsOfTokens) {
  const auto predictor = make();
  constexpr std::int32_t kTokens = 3000;
  std::mt19937 random(2);
  std::vector<std::int32_t> ids(kTokens * kTopK);
  for (auto& id : ids) id = std::int32_t(random() % kExperts);
  const Turn turn = make_trace(1, 3)[0];
  for (std::int32_t layer = 0; layer < kLayers; ++layer) {
    predictor->observe({layer, kTokens, kTopK, ids.data(), nullptr, turn.hidden.data()});
    expect_sane(ask(*predictor, layer), layer);
  }
}

INSTANTIATE_TEST_SUITE_P(Every, PredictorConformance, ::testing::ValuesIn(kEnrolled),
                         [](const auto& info) {
                           std::string name = info.param.name;
                           std::replace_if(
                               name.begin(), name.end(),
                               [](char c) { return std::isalnum(c) == 0; }, '_');
                           return name + "_" + std::to_string(info.index);
                         });

}  // namespace
}  // namespace prophet
