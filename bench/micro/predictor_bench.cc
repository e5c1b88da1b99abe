// What foresight costs per layer step, on one core.
//
//   Bank/L x E top-K rank R/MiB   a bank of random weights: six averages, three of them and three
//                                 recent blocks in the network, six heads of two latents, three
//                                 layers ahead with pair terms. Predictors take turns, token by
//                                 token, until their weights fill that many MiB; 0: one alone,
//                                 which the last cache holds if it is small.
//   Transformer/L x E top-K width W depth D/MiB    the paper's, of random weights: three layers of
//                                 the token, six averages, six heads, three layers ahead.
//   Joint/L x E top-K rank R/H    such a bank alone, joined by next-gate over hidden states of
//   width H. Named/NAME/L x E top-K        those that need no training, and no hidden state.
//
// Time is that of one token, all layers of it: observe, next_use and forecast in each. Counters are
// medians, in microseconds: of each of the three, and `step_us` of the whole.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/expert_ffn.h"
#include "predict/bank_predictor.h"
#include "predict/joint_predictor.h"
#include "predict/predictor_registry.h"
#include "predict/transformer_predictor.h"

namespace prophet {
namespace {

using Clock = std::chrono::steady_clock;

struct Sizes {
  Geometry geometry;
  std::int32_t rank = 0;
};

std::vector<std::uint16_t> halves(std::size_t n) {
  std::vector<std::uint16_t> out(n);
  std::uint32_t state = 1;
  for (std::uint16_t& bits : out) {
    state = state * 1664525u + 1013904223u;
    // Between 1/128 and 1/32 of either sign.
    bits = std::uint16_t(0x2000 + (state >> 16 & 0x87ff));
  }
  return out;
}

std::vector<float> floats(std::size_t n, float value) { return std::vector<float>(n, value); }

std::unique_ptr<Predictor> make_bank(const Sizes& sizes) {
  BankConfig c;
  c.geometry = sizes.geometry;
  c.rank = sizes.rank;
  c.decays = {0.5f, 0.8f, 0.9f, 0.95f, 0.98f, 0.995f};
  c.bank = {1, 3, 5};
  c.recent = {{0, false}, {0, true}, {1, false}};
  c.heads = 6;
  c.latents = 2;
  c.limits = 1;
  c.ahead = 3;
  c.pairs = std::clamp(256 / c.geometry.experts_per_layer, 1, 4);  // as prophet train chooses
  const std::size_t L = std::size_t(c.geometry.layers), R = std::size_t(c.rank),
                    E = std::size_t(c.geometry.experts_per_layer), N = 6, M = 2, F = 3;
  BankWeights w;
  w.enter_bank = halves(3 * L * E * R);
  w.enter_recent = halves(3 * L * E * R);
  w.enter_bias = floats(R, 0);
  w.norm_gain = floats(L * R, 1);
  w.norm_bias = floats(L * R, 0);
  w.leave_weight = halves(L * M * E * R);
  w.leave_bias = floats(L * M * E, 0);
  w.leave_mix = floats(N * M, 0.5f);
  w.own_weight = floats(L * N * 8, 0.1f);
  w.own_bias = floats(L * N * E, 0);
  w.next_scale = floats(L * N, 1);
  w.gap_weight = floats(1 + N, 3);
  w.ahead_weight = halves(F * L * E * R);
  w.ahead_bias = floats(F * L * E, -2);
  w.ahead_prior = floats(F * L, 0.5f);
  w.ahead_pair = halves(std::size_t(c.pairs) * F * L * E * E);
  w.ahead_scale = floats(F * L, 1);
  return std::make_unique<BankPredictor>(std::move(c), std::move(w));
}

struct Encoder {
  Geometry geometry;
  std::int32_t width = 0, depth = 0;
};

std::unique_ptr<Predictor> make_transformer(const Encoder& sizes) {
  TransformerConfig c;
  c.geometry = sizes.geometry;
  c.width = sizes.width;
  c.depth = sizes.depth;
  c.attention_heads = sizes.width / 32;
  c.context = 3;
  c.decays = {0.5f, 0.8f, 0.9f, 0.95f, 0.98f, 0.995f};
  c.heads = 6;
  c.limits = 1;
  c.ahead = 3;
  const std::size_t L = std::size_t(c.geometry.layers), d = std::size_t(c.width),
                    E = std::size_t(c.geometry.experts_per_layer), B = std::size_t(c.depth), N = 6,
                    F = 3;
  TransformerWeights w;
  w.expert = halves(L * E * d);
  w.layer = floats(L * d, 0.1f);
  w.pad = floats(3 * d, 0.1f);
  w.place = floats(4 * d, 0.1f);
  w.enter_gain = w.middle_gain = floats(B * d, 1);
  w.enter_bias = w.middle_bias = w.merge_bias = w.down_bias = floats(B * d, 0);
  w.read_weight = halves(B * 3 * d * d);
  w.read_bias = floats(B * 3 * d, 0);
  w.merge_weight = halves(B * d * d);
  w.up_weight = w.down_weight = halves(B * 4 * d * d);
  w.up_bias = floats(B * 4 * d, 0);
  w.norm_gain = floats(d, 1);
  w.norm_bias = floats(d, 0);
  w.use_weight = halves(L * N * E * d);
  w.own_weight = floats(L * N * 8, 0.1f);
  w.own_bias = floats(L * N * E, 0);
  w.next_scale = floats(L * N, 1);
  w.gap_weight = floats(1 + N, 3);
  w.horizon_weight = halves(F * d * d);
  w.ahead_weight = halves(L * E * d);
  w.ahead_bias = floats(F * L * E, -2);
  w.ahead_scale = floats(F * L, 1);
  return std::make_unique<TransformerPredictor>(
      std::make_shared<const TransformerNetwork>(std::move(c), w));
}

std::size_t transformer_bytes(const Encoder& sizes) {
  const std::size_t d = std::size_t(sizes.width);
  return 2 * d *
         (std::size_t(sizes.geometry.total()) * 8 + d * (std::size_t(sizes.depth) * 12 + 3));
}

std::size_t bank_bytes(const Sizes& sizes) {
  const Geometry& g = sizes.geometry;
  return std::size_t(g.total()) * (std::size_t(sizes.rank) * 11 * 2 + g.experts_per_layer * 3 * 2);
}

// Distinct experts for every layer step of `tokens` tokens; low ids more often than high ones.
std::vector<std::int32_t> make_routes(const Geometry& g, std::int32_t tokens) {
  std::mt19937 random(1);
  std::vector<std::int32_t> routes;
  for (std::int32_t step = 0; step < tokens * g.layers; ++step) {
    const auto first = std::ssize(routes);
    while (std::ssize(routes) < first + g.top_k) {
      const std::uint32_t a = random() % std::uint32_t(g.experts_per_layer);
      const std::uint32_t b = random() % std::uint32_t(g.experts_per_layer);
      const auto expert = std::int32_t(std::min(a, b));
      if (std::find(routes.begin() + first, routes.end(), expert) == routes.end()) {
        routes.push_back(expert);
      }
    }
  }
  return routes;
}

double median(std::vector<double>& times) {
  const auto middle = times.begin() + std::ssize(times) / 2;
  std::nth_element(times.begin(), middle, times.end());
  return *middle;
}

void run(benchmark::State& state, const Geometry& g,
         const std::vector<std::unique_ptr<Predictor>>& predictors) {
  constexpr std::int32_t kTokens = 64;
  const auto routes = make_routes(g, kTokens);
  const std::vector<float> gates(std::size_t(g.top_k), 1.0f / float(g.top_k));
  std::vector<float> gaps(std::size_t(g.experts_per_layer));
  const std::vector<float> hidden = floats(std::size_t(predictors.front()->hidden_width()), 0.5f);
  std::vector<Forecast> out;
  std::vector<double> times[4];
  std::size_t token = 0;
  for (auto _ : state) {
    Predictor& predictor = *predictors[token % predictors.size()];
    for (std::int32_t layer = 0; layer < g.layers; ++layer) {
      const std::size_t at =
          (token % kTokens * std::size_t(g.layers) + std::size_t(layer)) * std::size_t(g.top_k);
      const auto begin = Clock::now();
      predictor.observe({layer, 1, g.top_k, routes.data() + at, gates.data(),
                         hidden.empty() ? nullptr : hidden.data()});
      const auto observed = Clock::now();
      predictor.next_use(layer, gaps);
      const auto scored = Clock::now();
      out.clear();
      predictor.forecast(layer, out);
      const auto end = Clock::now();
      benchmark::DoNotOptimize(gaps.data());
      benchmark::DoNotOptimize(out.data());
      const Clock::time_point points[] = {begin, observed, scored, end};
      for (int i = 0; i < 3; ++i) {
        times[i].push_back(
            std::chrono::duration<double, std::micro>(points[i + 1] - points[i]).count());
      }
      times[3].push_back(std::chrono::duration<double, std::micro>(end - begin).count());
    }
    ++token;
  }
  state.SetItemsProcessed(state.iterations() * g.layers);
  const char* const names[] = {"observe_us", "next_use_us", "forecast_us", "step_us"};
  for (int i = 0; i < 4; ++i) state.counters[names[i]] = median(times[i]);
}

void bank(benchmark::State& state, const Sizes& sizes, std::size_t mib) {
  std::vector<std::unique_ptr<Predictor>> predictors;
  do {
    predictors.push_back(make_bank(sizes));
  } while (predictors.size() * bank_bytes(sizes) < mib << 20);
  run(state, sizes.geometry, predictors);
}

void transformer(benchmark::State& state, const Encoder& sizes, std::size_t mib) {
  std::vector<std::unique_ptr<Predictor>> predictors;
  do {
    predictors.push_back(make_transformer(sizes));
  } while (predictors.size() * transformer_bytes(sizes) < mib << 20);
  run(state, sizes.geometry, predictors);
}

void joint(benchmark::State& state, const Sizes& sizes, std::int32_t width) {
  const Geometry& g = sizes.geometry;
  PredictorInputs inputs;
  inputs.hidden = width;
  inputs.router = floats(std::size_t(g.total()) * std::size_t(width), 0);
  for (std::size_t i = 0; i < inputs.router.size(); ++i) {
    inputs.router[i] = float(i * 2654435761u % 1000) / 1000 - 0.5f;
  }
  std::vector<std::unique_ptr<Predictor>> predictors;
  predictors.push_back(std::make_unique<JointPredictor>(g, make_bank(sizes),
                                                        make_predictor("next-gate", g, inputs)));
  run(state, g, predictors);
}

void named(benchmark::State& state, const std::string& name, const Geometry& g) {
  std::vector<std::unique_ptr<Predictor>> predictors;
  predictors.push_back(make_predictor(name, g));
  run(state, g, predictors);
}

std::string words(const Geometry& g) {
  return std::to_string(g.layers) + "x" + std::to_string(g.experts_per_layer) + " top-" +
         std::to_string(g.top_k);
}

const int kRegistered = [] {
  const Geometry small{24, 32, 4}, middle{48, 128, 8}, large{60, 512, 10};
  for (const Sizes& sizes :
       {Sizes{small, 512}, Sizes{small, 352}, Sizes{small, 256}, Sizes{middle, 512},
        Sizes{middle, 256}, Sizes{large, 256}, Sizes{large, 128}}) {
    for (std::size_t mib : {0, 256}) {
      const std::string name = "Bank/" + words(sizes.geometry) + " rank " +
                               std::to_string(sizes.rank) + "/" + std::to_string(mib);
      benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& s) { bank(s, sizes, mib); })
          ->Unit(benchmark::kMicrosecond)
          ->MinTime(0.4);
    }
  }
  for (const Encoder& sizes :
       {Encoder{small, 128, 2}, Encoder{small, 320, 4}, Encoder{middle, 320, 4}}) {
    for (std::size_t mib : {0, 256}) {
      const std::string name = "Transformer/" + words(sizes.geometry) + " width " +
                               std::to_string(sizes.width) + " depth " +
                               std::to_string(sizes.depth) + "/" + std::to_string(mib);
      const auto one = [=](benchmark::State& s) { transformer(s, sizes, mib); };
      benchmark::RegisterBenchmark(name.c_str(), one)->Unit(benchmark::kMicrosecond)->MinTime(0.4);
    }
  }
  for (const auto& [sizes, width] :
       {std::pair{Sizes{small, 256}, 192}, std::pair{Sizes{middle, 256}, 2048}}) {
    const std::string name = "Joint/" + words(sizes.geometry) + " rank " +
                             std::to_string(sizes.rank) + "/" + std::to_string(width);
    benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& s) { joint(s, sizes, width); })
        ->Unit(benchmark::kMicrosecond)
        ->MinTime(0.4);
  }
  for (const Geometry& g : {small, middle, large}) {
    for (const char* kind : {"popularity", "previous-token", "markov"}) {
      const std::string name = "Named/" + std::string(kind) + "/" + words(g);
      benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& s) { named(s, kind, g); })
          ->Unit(benchmark::kMicrosecond)
          ->MinTime(0.2);
    }
  }
  return 0;
}();

}  // namespace
}  // namespace prophet
