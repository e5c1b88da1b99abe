// A small bank of random weights, for tests.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "kernels/expert_ffn.h"
#include "predict/bank_network.h"

namespace prophet::small_bank {

inline constexpr std::int32_t kLayers = 4, kExperts = 9, kTopK = 3, kRank = 20, kHidden = 7;

// Random weights; float16 tensors hold numbers that float16 has.
struct Random {
  std::mt19937 engine{11};
  std::vector<float> floats(std::size_t n, float scale, float shift = 0) {
    std::normal_distribution<float> normal(shift, scale);
    std::vector<float> out(n);
    for (float& v : out) v = normal(engine);
    return out;
  }
  std::vector<std::uint16_t> halves(std::size_t n, float scale) {
    const auto wide = floats(n, scale);
    std::vector<std::uint16_t> out(n);
    narrow(wide.data(), DType::f16, out.data(), n);
    return out;
  }
};

inline BankConfig config() {
  BankConfig c;
  c.geometry = {kLayers, kExperts, kTopK};
  c.rank = kRank;
  c.decays = {0.5f, 0.9f, 0.98f};
  c.bank = {1, 2};
  c.recent = {{0, false}, {0, true}, {1, false}, {2, false}};
  c.heads = 4;
  c.latents = 2;
  c.limits = 2;
  c.limit = 1;
  c.ahead = 2;
  c.pairs = 2;
  c.hidden = kHidden;
  return c;
}

inline BankWeights weights(const BankConfig& c = config()) {
  const std::size_t L = c.geometry.layers, E = c.geometry.experts_per_layer, R = c.rank,
                    B = c.bank.size(), C = c.recent.size(), M = c.latents, N = c.heads,
                    D = c.decays.size(), F = c.ahead;
  Random random;
  BankWeights w;
  w.enter_bank = random.halves(B * L * E * R, .3f);
  w.enter_recent = random.halves(C * L * E * R, .3f);
  w.enter_hidden = random.halves(L * c.hidden * R, .3f);
  w.enter_bias = random.floats(R, .1f);
  w.norm_gain = random.floats(L * R, .2f, 1);
  w.norm_bias = random.floats(L * R, .2f);
  w.mid_weight = random.halves(R * R, .2f);
  w.mid_bias = random.floats(R, .1f);
  w.leave_weight = random.halves(L * M * E * R, .2f);
  w.leave_bias = random.floats(L * M * E, .2f);
  w.leave_mix = random.floats(N * M, .5f);
  w.own_weight = random.floats(D > 0 ? L * N * (D + 2) : 0, .2f);
  w.own_bias = random.floats(L * N * E, .3f);
  w.next_scale = random.floats(L * N, .1f, 1);
  w.gap_weight = random.floats(std::size_t(c.limits) * (1 + N), .2f, 1.5f);
  w.ahead_weight = random.halves(F * L * E * R, .2f);
  w.ahead_bias = random.floats(F * L * E, .2f);
  w.ahead_prior = random.floats(F * L, .2f, .5f);
  w.ahead_pair = random.halves(std::size_t(c.pairs) * F * L * E * E, .3f);
  w.ahead_scale = random.floats(F * L, .1f, 1);
  return w;
}

}  // namespace prophet::small_bank
