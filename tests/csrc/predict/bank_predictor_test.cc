// The incremental predictor against the definition, computed from the whole history in float64.
#include "predict/bank_predictor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <set>

#include "core/error.h"
#include "kernels/expert_ffn.h"
#include "predict/small_bank.h"

namespace prophet {
namespace {

using namespace small_bank;

struct Turn {
  std::vector<std::int32_t> experts;
  std::vector<float> weights;
  std::vector<float> hidden;
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
  }
  return trace;
}

Glimpse glimpse_of(const Trace& trace, std::size_t at) {
  const Turn& turn = trace[at];
  return {std::int32_t(at % kLayers), 1, kTopK, turn.experts.data(), turn.weights.data(),
          turn.hidden.data()};
}

// The definition, from everything seen up to step `at`, in float64; nothing is kept between calls.
class Definition {
 public:
  Definition(const BankConfig& c, const BankWeights& w) : c_(c), w_(w) {}

  std::vector<double> gaps(const Trace& trace, std::size_t at) const {
    const auto raw = logits(trace, at);
    const std::size_t l = at % kLayers;
    std::vector<double> out(kExperts);
    const float* weight = &w_.gap_weight[std::size_t(c_.limit) * (1 + c_.heads)];
    for (std::size_t i = 0; i < kExperts; ++i) {
      double gap = weight[0];
      for (std::size_t n = 0; n < std::size_t(c_.heads); ++n) {
        gap += weight[1 + n] * (1 - sigmoid(w_.next_scale[l * c_.heads + n] * raw[n][i]));
      }
      out[i] = std::max(1.0, gap);
    }
    return out;
  }

  std::vector<double> ahead(const Trace& trace, std::size_t at, std::int32_t f) const {
    const std::size_t l = at % kLayers, j = l + std::size_t(f);
    const std::size_t row = std::size_t(f - 1) * kLayers + j;
    const auto deep = network(trace, at);
    // The last time layer j ran is one token ago.
    std::vector<double> z(kExperts,
                          std::log((1.0 * kTopK / kExperts) / (1 - 1.0 * kTopK / kExperts)));
    if (at + std::size_t(f) >= kLayers) z = logits(trace, at + std::size_t(f) - kLayers)[0];
    std::vector<double> out(kExperts);
    for (std::size_t i = 0; i < kExperts; ++i) {
      double logit = w_.ahead_prior[row] * z[i] + w_.ahead_bias[row * kExperts + i];
      for (std::size_t r = 0; r < kRank; ++r) {
        logit += half(w_.ahead_weight[(row * kExperts + i) * kRank + r]) * deep[r];
      }
      for (std::size_t back = 0; back < std::size_t(c_.pairs) && back <= l; ++back) {
        const std::size_t of = back * std::size_t(c_.ahead) * kLayers + row;
        for (std::int32_t e : trace[at - back].experts) {
          logit += half(w_.ahead_pair[(of * kExperts + std::size_t(e)) * kExperts + i]);
        }
      }
      out[i] = sigmoid(w_.ahead_scale[row] * logit);
    }
    return out;
  }

 private:
  static double sigmoid(double v) { return 1 / (1 + std::exp(-v)); }
  static double hardswish(double v) { return v * std::min(std::max(v + 3, 0.0), 6.0) / 6; }
  static double half(std::uint16_t bits) {
    float out = 0;
    widen(DType::f16, &bits, &out, 1);
    return out;
  }
  static double selected(const Turn& turn, std::size_t i) {
    return std::count(turn.experts.begin(), turn.experts.end(), std::int32_t(i)) ? 1 : 0;
  }
  static double gate(const Turn& turn, std::size_t i) {
    double sum = 0, own = 0;
    for (std::size_t k = 0; k < turn.experts.size(); ++k) {
      sum += turn.weights[k];
      if (turn.experts[k] == std::int32_t(i)) own = turn.weights[k];
    }
    return kTopK * own / sum;
  }
  // Turns of layer l up to step `at`, oldest first.
  static std::vector<const Turn*> turns(const Trace& trace, std::size_t at, std::size_t l) {
    std::vector<const Turn*> out;
    for (std::size_t s = l; s <= at; s += kLayers) out.push_back(&trace[s]);
    return out;
  }
  double average(const std::vector<const Turn*>& history, float decay, std::size_t i) const {
    double e = double(kTopK) / kExperts;
    for (const Turn* turn : history) e = decay * e + (1 - decay) * selected(*turn, i);
    return e;
  }

  std::vector<double> network(const Trace& trace, std::size_t at) const {
    std::vector<double> a(w_.enter_bias.begin(), w_.enter_bias.end());
    for (std::size_t l = 0; l < kLayers; ++l) {
      const auto history = turns(trace, at, l);
      for (std::size_t i = 0; i < kExperts; ++i) {
        for (std::size_t r = 0; r < kRank; ++r) {
          for (std::size_t b = 0; b < c_.bank.size(); ++b) {
            a[r] += half(w_.enter_bank[((b * kLayers + l) * kExperts + i) * kRank + r]) *
                    average(history, c_.decays[std::size_t(c_.bank[b])], i);
          }
          for (std::size_t block = 0; block < c_.recent.size(); ++block) {
            const std::size_t lag = std::size_t(c_.recent[block].lag);
            if (lag >= history.size()) continue;
            const Turn& turn = *history[history.size() - 1 - lag];
            a[r] += half(w_.enter_recent[((block * kLayers + l) * kExperts + i) * kRank + r]) *
                    (c_.recent[block].gate ? gate(turn, i) : selected(turn, i));
          }
        }
      }
    }
    const std::size_t l = at % kLayers;
    double square = 0;
    for (float v : trace[at].hidden) square += double(v) * v;
    const double scale = 1 / std::sqrt(square / kHidden + 1e-6);
    for (std::size_t h = 0; h < kHidden; ++h) {
      for (std::size_t r = 0; r < kRank; ++r) {
        a[r] += trace[at].hidden[h] * scale * half(w_.enter_hidden[(l * kHidden + h) * kRank + r]);
      }
    }
    double mean = 0, var = 0;
    for (double v : a) mean += v / kRank;
    for (double v : a) var += (v - mean) * (v - mean) / kRank;
    std::vector<double> first(kRank), out(kRank);
    for (std::size_t r = 0; r < kRank; ++r) {
      first[r] = hardswish((a[r] - mean) / std::sqrt(var + 1e-5) * w_.norm_gain[l * kRank + r] +
                           w_.norm_bias[l * kRank + r]);
    }
    for (std::size_t r = 0; r < kRank; ++r) {
      out[r] = first[r];
      if (w_.mid_weight.empty()) continue;
      double v = w_.mid_bias[r];
      for (std::size_t s = 0; s < kRank; ++s) v += half(w_.mid_weight[r * kRank + s]) * first[s];
      out[r] += hardswish(v);
    }
    return out;
  }

  std::vector<std::vector<double>> logits(const Trace& trace, std::size_t at) const {
    const std::size_t l = at % kLayers, D = c_.decays.size(), N = std::size_t(c_.heads);
    const auto deep = network(trace, at);
    const auto history = turns(trace, at, l);
    std::vector<std::vector<double>> out(N, std::vector<double>(kExperts));
    for (std::size_t i = 0; i < kExperts; ++i) {
      std::vector<double> o(std::size_t(c_.latents));
      for (std::size_t m = 0; m < o.size(); ++m) {
        const std::size_t row = (l * o.size() + m) * kExperts + i;
        o[m] = w_.leave_bias[row];
        for (std::size_t r = 0; r < kRank; ++r)
          o[m] += half(w_.leave_weight[row * kRank + r]) * deep[r];
      }
      for (std::size_t n = 0; n < N; ++n) {
        const float* own = &w_.own_weight[(l * N + n) * (D + 2)];
        double logit = w_.own_bias[(l * N + n) * kExperts + i];
        for (std::size_t d = 0; d < D; ++d) {
          logit += own[d] * std::log(average(history, c_.decays[d], i) + 0.004);
        }
        logit += own[D] * gate(*history.back(), i) * selected(*history.back(), i);
        if (history.size() > 1) logit += own[D + 1] * selected(*history[history.size() - 2], i);
        for (std::size_t m = 0; m < o.size(); ++m) logit += w_.leave_mix[n * o.size() + m] * o[m];
        out[n][i] = logit;
      }
    }
    return out;
  }

  const BankConfig c_;
  const BankWeights w_;
};

void expect_definition(const BankWeights& w) {
  BankPredictor predictor(config(), w);
  const Definition definition(config(), w);
  const Trace trace = make_trace(12, 5);
  std::vector<float> gaps(kExperts);
  for (std::size_t at = 0; at < trace.size(); ++at) {
    const std::int32_t layer = std::int32_t(at % kLayers);
    predictor.observe(glimpse_of(trace, at));
    ASSERT_TRUE(predictor.next_use(layer, gaps));
    const auto want = definition.gaps(trace, at);
    for (std::size_t i = 0; i < kExperts; ++i) EXPECT_NEAR(gaps[i], want[i], 1e-5) << at;
    ASSERT_EQ(predictor.horizons(layer), std::min(2, kLayers - 1 - layer));
    for (std::int32_t f = 1; f <= predictor.horizons(layer); ++f) {
      std::vector<float> p(kExperts);
      predictor.probabilities(layer, f, p);
      const auto wanted = definition.ahead(trace, at, f);
      for (std::size_t i = 0; i < kExperts; ++i) EXPECT_NEAR(p[i], wanted[i], 1e-5) << at;
    }
  }
}

TEST(BankPredictor, EqualsItsDefinitionAtEveryStepInEveryInstructionSet) {
  const std::string before{kernel_isa()};
  for (const std::string& isa : kernel_isas()) {
    SCOPED_TRACE(isa);
    set_kernel_isa(isa);
    expect_definition(weights());
  }
  set_kernel_isa(before);
}

TEST(BankPredictor, ForecastsAreTheProbabilitiesThatAreWorthHandingOver) {
  BankWeights w = weights();
  for (float& bias : w.ahead_bias) bias -= 4;  // else all are likely
  // The expected gap is then 2 - p, p the chance of the own next turn.
  const std::size_t row = 1 + std::size_t(config().heads);
  for (std::size_t i = 0; i < w.gap_weight.size(); ++i) w.gap_weight[i] = i % row < 2 ? 1.0f : 0.0f;
  BankPredictor predictor(config(), w);
  std::vector<float> gaps(kExperts);
  const Trace trace = make_trace(3, 5);
  bool left_out = false;
  for (std::size_t at = 0; at < trace.size(); ++at) {
    const std::int32_t layer = std::int32_t(at % kLayers);
    predictor.observe(glimpse_of(trace, at));
    std::vector<Forecast> want, got;
    for (std::int32_t f = 1; f <= predictor.horizons(layer); ++f) {
      std::vector<float> p(kExperts);
      predictor.probabilities(layer, f, p);
      for (std::int32_t i = 0; i < kExperts; ++i) {
        if (p[std::size_t(i)] >= kLeastForecast) {
          want.push_back({{layer + f, i}, p[std::size_t(i)], f});
        } else {
          left_out = true;
        }
      }
    }
    predictor.next_use(layer, gaps);
    predictor.forecast(layer, got);
    const auto own = std::stable_partition(
        got.begin(), got.end(), [&](const Forecast& one) { return one.horizon < kLayers; });
    for (auto one = own; one != got.end(); ++one) {
      EXPECT_EQ(one->key.layer, layer);
      EXPECT_GE(one->p, kLeastForecast);
      EXPECT_NEAR(one->p, 2 - gaps[std::size_t(one->key.expert)], 1e-5f);
    }
    got.erase(own, got.end());
    ASSERT_EQ(got.size(), want.size());
    for (std::size_t k = 0; k < got.size(); ++k) {
      EXPECT_EQ(got[k].key, want[k].key);
      EXPECT_EQ(got[k].p, want[k].p);
      EXPECT_EQ(got[k].horizon, want[k].horizon);
    }
  }
  EXPECT_TRUE(left_out);
}

TEST(BankPredictor, MayHaveNoMiddle) {
  BankWeights w = weights();
  w.mid_weight.clear();
  w.mid_bias.clear();
  expect_definition(w);
}

// Change everything after a step: what was said up to it must not change.
TEST(BankPredictor, KnowsNothingOfTheFuture) {
  const Trace trace = make_trace(8, 6), other = make_trace(8, 7);
  for (std::size_t cut : {std::size_t(0), std::size_t(5), std::size_t(14), std::size_t(22)}) {
    Trace tampered = trace;
    for (std::size_t at = cut + 1; at < trace.size(); ++at) tampered[at] = other[at];
    BankPredictor a(config(), weights()), b(config(), weights());
    std::vector<float> ga(kExperts), gb(kExperts);
    bool differs_later = false;
    for (std::size_t at = 0; at < trace.size(); ++at) {
      a.observe(glimpse_of(trace, at));
      b.observe(glimpse_of(tampered, at));
      a.next_use(std::int32_t(at % kLayers), ga);
      b.next_use(std::int32_t(at % kLayers), gb);
      if (at <= cut) {
        ASSERT_EQ(ga, gb);
      } else {
        differs_later |= ga != gb;
      }
    }
    EXPECT_TRUE(differs_later);
  }
}

TEST(BankPredictor, ResetForgetsEverything) {
  const Trace trace = make_trace(6, 8);
  BankPredictor fresh(config(), weights()), used(config(), weights());
  for (std::size_t at = 0; at < trace.size(); ++at) used.observe(glimpse_of(trace, at));
  used.reset();
  std::vector<float> a(kExperts), b(kExperts);
  for (std::size_t at = 0; at < trace.size(); ++at) {
    fresh.observe(glimpse_of(trace, at));
    used.observe(glimpse_of(trace, at));
    fresh.next_use(std::int32_t(at % kLayers), a);
    used.next_use(std::int32_t(at % kLayers), b);
    ASSERT_EQ(a, b);
  }
}

// One step of many tokens equals the tokens one after the other, layer by layer.
TEST(BankPredictor, AStepOfManyTokensIsManyTurns) {
  const Trace trace = make_trace(5, 9);
  BankPredictor one(config(), weights()), many(config(), weights());
  Turn all;
  for (std::size_t t = 0; t < 5; ++t) {
    const Turn& turn = trace[t * kLayers];
    one.observe({0, 1, kTopK, turn.experts.data(), turn.weights.data(), turn.hidden.data()});
    all.experts.insert(all.experts.end(), turn.experts.begin(), turn.experts.end());
    all.weights.insert(all.weights.end(), turn.weights.begin(), turn.weights.end());
    all.hidden = turn.hidden;
  }
  many.observe({0, 5, kTopK, all.experts.data(), all.weights.data(), all.hidden.data()});
  std::vector<float> a(kExperts), b(kExperts);
  one.next_use(0, a);
  many.next_use(0, b);
  for (std::size_t i = 0; i < kExperts; ++i) EXPECT_NEAR(a[i], b[i], 1e-5);
}

TEST(BankPredictor, TakesWhateverARouterMaySay) {
  BankPredictor predictor(config(), weights());
  const std::int32_t odd[] = {3, 3, 99, -1, 5, 3};
  const float none[] = {0, 0, 0, 0, 0, 0};
  predictor.observe({1, 2, 3, odd, none, nullptr});
  predictor.observe({1, 2, 3, odd, nullptr, nullptr});
  std::vector<float> gaps(kExperts);
  ASSERT_TRUE(predictor.next_use(1, gaps));
  for (float gap : gaps) EXPECT_TRUE(gap >= 1 && std::isfinite(gap));
  EXPECT_THROW(predictor.next_use(2, gaps), StateError);
  EXPECT_THROW(predictor.observe({kLayers, 1, 3, odd, nullptr, nullptr}), InvalidArgument);
}

TEST(BankPredictor, RefusesTensorsThatDoNotFitAndNumbersThatAreNone) {
  BankWeights w = weights();
  w.mid_bias.pop_back();
  EXPECT_THROW(BankPredictor(config(), w), InvalidArgument);
  w = weights();
  w.own_bias[3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(BankPredictor(config(), w), InvalidArgument);
  w = weights();
  w.enter_bank[0] = 0x7c00;  // infinity
  EXPECT_THROW(BankPredictor(config(), w), InvalidArgument);
  BankConfig c = config();
  c.limit = 2;
  EXPECT_THROW(BankPredictor(c, weights()), InvalidArgument);
  c = config();
  c.bank = {1, 3};
  EXPECT_THROW(BankPredictor(c, weights()), InvalidArgument);
  c = config();
  c.decays[0] = 1;
  EXPECT_THROW(BankPredictor(c, weights()), InvalidArgument);
}

}  // namespace
}  // namespace prophet
