// What each training-free predictor claims of itself, on processes whose answer is known.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "core/error.h"
#include "kernels/expert_ffn.h"
#include "predict/predictor_registry.h"

namespace prophet {
namespace {

using Set = std::set<std::int32_t>;

void observe(Predictor& predictor, std::int32_t layer, const Set& chosen,
             const float* hidden = nullptr) {
  const std::vector<std::int32_t> ids(chosen.begin(), chosen.end());
  predictor.observe({layer, 1, std::int32_t(ids.size()), ids.data(), nullptr, hidden});
}

// Probabilities at one horizon; experts that were left out are missing.
std::map<std::int32_t, float> ahead(Predictor& predictor, std::int32_t layer,
                                    std::int32_t horizon) {
  std::vector<Forecast> out;
  predictor.forecast(layer, out);
  std::map<std::int32_t, float> p;
  for (const Forecast& one : out) {
    if (one.horizon == horizon) p[one.key.expert] = one.p;
  }
  return p;
}

Set most_likely(const std::map<std::int32_t, float>& p, std::size_t count) {
  std::vector<std::pair<float, std::int32_t>> order;
  for (const auto& [expert, one] : p) order.push_back({-one, expert});
  std::sort(order.begin(), order.end());
  Set out;
  for (std::size_t i = 0; i < std::min(count, order.size()); ++i) out.insert(order[i].second);
  return out;
}

Set draw(std::mt19937& random, std::int32_t experts, std::size_t count) {
  Set out;
  while (out.size() < count) out.insert(std::int32_t(random() % std::uint32_t(experts)));
  return out;
}

// Zero staleness: where the coming set is what the predictor goes by, it must read 100 %.
TEST(TrainingFree, PopularityAndPreviousTokenAreRightWhereNothingChanges) {
  const Geometry geometry{5, 12, 3};
  for (const char* name : {"popularity", "previous-token"}) {
    SCOPED_TRACE(name);
    const auto predictor = make_predictor(name, geometry);
    std::mt19937 random(1);
    std::vector<Set> sets;
    for (int l = 0; l < 5; ++l) sets.push_back(draw(random, 12, 3));
    for (int token = 0; token < 60; ++token) {
      for (std::int32_t l = 0; l < 5; ++l) {
        observe(*predictor, l, sets[std::size_t(l)]);
        for (std::int32_t f = 1; token > 0 && f <= 3 && l + f < 5; ++f) {
          EXPECT_EQ(most_likely(ahead(*predictor, l, f), 3), sets[std::size_t(l + f)]);
        }
      }
    }
    observe(*predictor, 0, sets[0]);
    for (std::int32_t i : sets[1]) {
      EXPECT_GT(ahead(*predictor, 0, 1)[i], name[1] == 'o' ? 0.5f : 0.95f);
    }
  }
}

TEST(TrainingFree, MarkovIsRightWhereOneLayerDecidesTheNext) {
  const Geometry geometry{4, 10, 1};
  const auto predictor = make_predictor("markov", geometry);
  std::mt19937 random(2);
  for (int token = 0; token < 400; ++token) {
    const auto first = std::int32_t(random() % 10);
    for (std::int32_t l = 0; l < 4; ++l) {
      observe(*predictor, l, {(first * 3 + 7 * l) % 10});
      for (std::int32_t f = 1; token > 150 && l + f < 4; ++f) {
        EXPECT_EQ(most_likely(ahead(*predictor, l, f), 1), Set{(first * 3 + 7 * (l + f)) % 10});
      }
    }
  }
}

TEST(TrainingFree, MarkovLearnsConditionals) {
  const Geometry geometry{2, 6, 1};
  const auto predictor = make_predictor("markov", geometry);
  std::mt19937 random(3);
  std::map<std::int32_t, float> sum;
  int asked = 0;
  for (int token = 0; token < 12000; ++token) {
    const auto first = std::int32_t(random() % 6);
    observe(*predictor, 0, {first});
    if (token > 3000 && first == 2) {
      for (const auto& [expert, p] : ahead(*predictor, 0, 1)) sum[expert] += p;
      ++asked;
    }
    // The same again in 7 of 10 cases, else any.
    observe(*predictor, 1, {random() % 10 < 7 ? first : std::int32_t(random() % 6)});
  }
  EXPECT_NEAR(sum[2] / float(asked), 0.75, 0.03);
  EXPECT_NEAR(sum[4] / float(asked), 0.05, 0.03);
}

TEST(TrainingFree, MarkovKeepsWhatIsFrequentWhenThereAreMoreThanItCanKeep) {
  const Geometry geometry{2, 300, 4};
  const auto predictor = make_predictor("markov", geometry);
  std::mt19937 random(4);
  for (int token = 0; token < 600; ++token) {
    observe(*predictor, 0, {0, 1, 2, 3});
    Set next = draw(random, 300, 3);
    next.insert(7);
    observe(*predictor, 1, next);
  }
  observe(*predictor, 0, {0, 1, 2, 3});
  const auto p = ahead(*predictor, 0, 1);
  EXPECT_EQ(most_likely(p, 1), Set{7});
  EXPECT_GT(p.at(7), 0.9f);
}

TEST(TrainingFree, PreviousTokenCountsHowManyStay) {
  const Geometry geometry{2, 40, 4};
  const auto predictor = make_predictor("previous-token", geometry);
  std::mt19937 random(5);
  Set now = draw(random, 40, 4);
  double stays = 0, others = 0;
  int asked = 0;
  for (int token = 0; token < 4000; ++token) {
    observe(*predictor, 0, {0, 1, 2, 3});
    if (token > 500) {
      const auto p = ahead(*predictor, 0, 1);
      stays += p.at(*now.begin());
      for (std::int32_t i = 0; i < 40; ++i) {
        if (now.count(i)) continue;
        others += p.count(i) ? p.at(i) : 0;
        break;
      }
      ++asked;
    }
    Set next;  // exactly three of four stay
    for (std::int32_t i : now) {
      if (next.size() < 3) next.insert(i);
    }
    while (next.size() < 4) {
      const auto i = std::int32_t(random() % 40);
      if (!now.count(i)) next.insert(i);
    }
    now = next;
    observe(*predictor, 1, now);
  }
  EXPECT_NEAR(stays / asked, 0.75, 0.01);
  EXPECT_NEAR(others / asked, 1.0 / 36, 0.002);
}

TEST(TrainingFree, PopularityTellsTheExpectedGapOfIndependentTurns) {
  const Geometry geometry{1, 8, 2};
  const auto predictor = make_predictor("popularity", geometry);
  std::vector<float> gaps(8), sums(8, 0);
  for (int token = 0; token < 4000; ++token) {
    // Expert 0 always, 1 to 4 in turn; 5 to 7 never.
    observe(*predictor, 0, {0, 1 + token % 4});
    ASSERT_TRUE(predictor->next_use(0, gaps));
    if (token >= 2000) {
      for (std::size_t i = 0; i < 8; ++i) sums[i] += gaps[i] / 2000;
    }
  }
  EXPECT_NEAR(sums[0], 1, 0.01);
  EXPECT_NEAR(sums[2], 4, 0.05);
  EXPECT_NEAR(sums[6], 64, 0.5);
}

// Routers whose layers read one and the same vector: the coming layer's gate is known.
struct Gates {
  static constexpr std::int32_t L = 4, E = 9, H = 21;
  static constexpr std::size_t K = 3;
  std::mt19937 random{6};
  PredictorInputs inputs;

  std::vector<float> normal(std::size_t n, float shift = 0) {
    std::normal_distribution<float> distribution(shift, 1);
    std::vector<float> out(n);
    for (float& v : out) v = distribution(random);
    return out;
  }
  // What layer l chooses for x, in float64; x is what came out of the norm of layer 0.
  Set choose(std::int32_t l, const std::vector<float>& x) const {
    std::vector<std::pair<double, std::int32_t>> order;
    for (std::int32_t i = 0; i < E; ++i) {
      double logit = inputs.router_bias.empty() ? 0 : inputs.router_bias[std::size_t(l * E + i)];
      for (std::int32_t h = 0; h < H; ++h) {
        double v = x[std::size_t(h)];
        if (!inputs.norm.empty()) v *= inputs.norm[std::size_t(l * H + h)];
        logit += v * inputs.router[std::size_t((l * E + i) * H + h)];
      }
      order.push_back({-logit, i});
    }
    std::sort(order.begin(), order.end());
    Set out;
    for (std::size_t k = 0; k < K; ++k) out.insert(order[k].second);
    return out;
  }
};

TEST(TrainingFree, NextGateIsRightWhereTheHiddenStateStays) {
  for (bool more : {false, true}) {
    Gates gates;
    gates.inputs.hidden = Gates::H;
    gates.inputs.router = gates.normal(Gates::L * Gates::E * Gates::H);
    if (more) {
      gates.inputs.router_bias = gates.normal(Gates::L * Gates::E);
      gates.inputs.norm = gates.normal(Gates::L * Gates::H, 3);
    }
    const auto predictor =
        make_predictor("next-gate", {Gates::L, Gates::E, Gates::K}, gates.inputs);
    double told = 0;
    int asked = 0;
    for (int token = 0; token < 300; ++token) {
      const auto x = gates.normal(Gates::H);  // before the norms
      for (std::int32_t l = 0; l < Gates::L; ++l) {
        auto read = x;
        for (std::int32_t h = 0; more && h < Gates::H; ++h) {
          read[std::size_t(h)] *= gates.inputs.norm[std::size_t(l * Gates::H + h)];
        }
        observe(*predictor, l, gates.choose(l, x), read.data());
        for (std::int32_t f = 1; l + f < Gates::L; ++f) {
          const auto p = ahead(*predictor, l, f);
          ASSERT_EQ(most_likely(p, Gates::K), gates.choose(l + f, x));
          if (token < 100) continue;
          for (const auto& [expert, one] : p) told += one;
          ++asked;
        }
      }
    }
    EXPECT_NEAR(told / asked, double(Gates::K), 0.05);  // probabilities of a set of three
  }
}

TEST(TrainingFree, NextGateLosesItsConfidenceWhereTheRouterReadsSomethingElse) {
  Gates gates;
  gates.inputs.hidden = Gates::H;
  gates.inputs.router = gates.normal(Gates::L * Gates::E * Gates::H);
  const auto predictor = make_predictor("next-gate", {Gates::L, Gates::E, Gates::K}, gates.inputs);
  std::map<std::int32_t, float> p;
  for (int token = 0; token < 2000; ++token) {
    for (std::int32_t l = 0; l < Gates::L; ++l) {
      const auto x = gates.normal(Gates::H);
      observe(*predictor, l, draw(gates.random, Gates::E, Gates::K), x.data());
      if (l == 0) {
        p = ahead(*predictor, l, 1);
      } else {
        ahead(*predictor, l, 1);
      }
    }
  }
  for (const auto& [expert, one] : p) EXPECT_NEAR(one, 3.0 / 9, 0.1);
}

TEST(TrainingFree, NextGateTakesRoutersInFloat16) {
  Gates gates;
  gates.inputs.hidden = Gates::H;
  const auto wide = gates.normal(Gates::L * Gates::E * Gates::H);
  PredictorInputs halves;
  halves.hidden = Gates::H;
  halves.router_f16.resize(wide.size());
  gates.inputs.router.resize(wide.size());
  narrow(wide.data(), DType::f16, halves.router_f16.data(), wide.size());
  widen(DType::f16, halves.router_f16.data(), gates.inputs.router.data(), wide.size());
  const Geometry geometry{Gates::L, Gates::E, Gates::K};
  const auto a = make_predictor("next-gate", geometry, gates.inputs),
             b = make_predictor("next-gate", geometry, halves);
  for (int token = 0; token < 20; ++token) {
    const auto x = gates.normal(Gates::H);
    for (std::int32_t l = 0; l < Gates::L; ++l) {
      observe(*a, l, gates.choose(l, x), x.data());
      observe(*b, l, gates.choose(l, x), x.data());
      ASSERT_EQ(ahead(*a, l, 1), ahead(*b, l, 1));
    }
  }
  halves.router_f16[4] = 0x7c00;  // infinity
  EXPECT_THROW(make_predictor("next-gate", geometry, halves), InvalidArgument);
}

TEST(TrainingFree, NextGateIsSilentWithoutAHiddenState) {
  Gates gates;
  gates.inputs.hidden = Gates::H;
  gates.inputs.router = gates.normal(Gates::L * Gates::E * Gates::H);
  const auto predictor = make_predictor("next-gate", {Gates::L, Gates::E, Gates::K}, gates.inputs);
  EXPECT_EQ(predictor->hidden_width(), Gates::H);
  const auto x = gates.normal(Gates::H);
  observe(*predictor, 0, {1, 2, 3}, x.data());
  EXPECT_FALSE(ahead(*predictor, 0, 1).empty());
  observe(*predictor, 1, {1, 2, 3});
  EXPECT_TRUE(ahead(*predictor, 1, 1).empty());
}

TEST(TrainingFree, RefusesNamesGeometriesAndInputsThatCannotBe) {
  const Geometry good{2, 4, 2};
  for (const std::string& name : predictor_names()) {
    PredictorInputs inputs;
    inputs.hidden = 3;
    inputs.router.assign(2 * 4 * 3, 1.0f);
    EXPECT_NO_THROW(make_predictor(name, good, inputs)) << name;
    for (const Geometry& bad : {Geometry{0, 4, 2}, Geometry{2, 0, 2}, Geometry{2, 4, 0},
                                Geometry{2, 4, 5}, Geometry{1 << 20, 1 << 20, 2}}) {
      EXPECT_THROW(make_predictor(name, bad, inputs), InvalidArgument) << name;
    }
  }
  EXPECT_THROW(make_predictor("crystal-ball", good), InvalidArgument);
  EXPECT_THROW(make_predictor("next-gate", good), InvalidArgument);
  PredictorInputs inputs;
  inputs.hidden = 3;
  inputs.router.assign(2 * 4 * 3 - 1, 1.0f);
  EXPECT_THROW(make_predictor("next-gate", good, inputs), InvalidArgument);
  inputs.router.assign(2 * 4 * 3, NAN);
  EXPECT_THROW(make_predictor("next-gate", good, inputs), InvalidArgument);
  inputs.router.assign(2 * 4 * 3, 1.0f);
  inputs.norm.assign(5, 1.0f);
  EXPECT_THROW(make_predictor("next-gate", good, inputs), InvalidArgument);
}

// Tokens take one of three fixed ways through the layers; one look at the first layers tells which.
Set on_way(std::int32_t way, std::int32_t layer) {
  const std::int32_t first = (4 * way + 5 * layer) % 24;
  return {first, (first + 1) % 24};
}

TEST(ExpertMap, ForetellsTheWayThatAPastTokenTook) {
  const Geometry geometry{6, 24, 2};
  const auto predictor = make_predictor("expert-map", geometry);
  for (std::int32_t token = 0; token < 30; ++token) {
    for (std::int32_t layer = 0; layer < geometry.layers; ++layer) {
      observe(*predictor, layer, on_way(token % 3, layer));
      const auto p = ahead(*predictor, layer, 3);
      EXPECT_TRUE(ahead(*predictor, layer, 1).empty());
      if (token < 3 || layer + 3 >= geometry.layers) continue;
      EXPECT_EQ(most_likely(p, 2), on_way(token % 3, layer + 3)) << token << " " << layer;
      EXPECT_EQ(p.size(), 2u);  // an exact match needs no more than top-k
    }
  }
}

TEST(ExpertMap, ReplacesWhatIsRedundantAndStillKnowsTheRest) {
  const Geometry geometry{4, 24, 2};
  const auto predictor = make_predictor("expert-map", geometry);
  for (std::int32_t token = 0; token < 2200; ++token) {  // way 2 once, then a thousand others
    const std::int32_t way = token == 5 ? 2 : token % 2;
    for (std::int32_t layer = 0; layer < geometry.layers; ++layer) {
      observe(*predictor, layer, on_way(way, layer));
    }
  }
  observe(*predictor, 0, on_way(2, 0));
  EXPECT_EQ(most_likely(ahead(*predictor, 0, 3), 2), on_way(2, 3));
}

TEST(ActivationMatrix, ForetellsTheRequestThatIsMostAlike) {
  const Geometry geometry{6, 24, 2};
  const auto predictor = make_predictor("activation-matrix", geometry);
  for (std::int32_t token = 0; token < 6 * 64; ++token) {  // requests of 64 tokens, one way each
    const std::int32_t way = token / 64 % 3;
    for (std::int32_t layer = 0; layer < geometry.layers; ++layer) {
      observe(*predictor, layer, on_way(way, layer));
      if (token < 3 * 64) continue;  // each way is known by now
      for (std::int32_t f = 1; layer + f < geometry.layers; ++f) {
        const auto p = ahead(*predictor, layer, f);
        EXPECT_EQ(most_likely(p, 2), on_way(way, layer + f));
        for (const auto& [expert, one] : p) EXPECT_FLOAT_EQ(one, 1 - float(f) / 6);
      }
    }
  }
}

}  // namespace
}  // namespace prophet
