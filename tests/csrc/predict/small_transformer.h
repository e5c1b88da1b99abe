// A small transformer of random weights, for tests. Its geometry is that of small_bank.h.
#pragma once

#include "predict/small_bank.h"
#include "predict/transformer_predictor.h"

namespace prophet::small_transformer {

inline TransformerConfig config() {
  TransformerConfig c;
  c.geometry = {small_bank::kLayers, small_bank::kExperts, small_bank::kTopK};
  c.width = 20;
  c.depth = 2;
  c.attention_heads = 2;
  c.context = 3;
  c.decays = {0.5f, 0.9f};
  c.heads = 3;
  c.limits = 2;
  c.limit = 1;
  c.ahead = 2;
  c.hidden = small_bank::kHidden;
  return c;
}

inline TransformerWeights weights(const TransformerConfig& c) {
  const auto L = std::size_t(c.geometry.layers), E = std::size_t(c.geometry.experts_per_layer);
  const auto d = std::size_t(c.width), B = std::size_t(c.depth), C = std::size_t(c.context);
  const auto H = std::size_t(c.hidden), N = std::size_t(c.heads), F = std::size_t(c.ahead);
  const std::size_t D = c.decays.size();
  small_bank::Random random;
  TransformerWeights w;
  w.expert = random.halves(L * E * d, 1);
  w.layer = random.floats(L * d, .3f);
  w.pad = random.floats(C * d, .3f);
  w.place = random.floats((C + 1) * d, .3f);
  w.project_weight = random.halves(d * H, .3f);
  w.project_bias = random.floats(H > 0 ? d : 0, .1f);
  w.enter_gain = random.floats(B * d, .2f, 1);
  w.enter_bias = random.floats(B * d, .1f);
  w.read_weight = random.halves(B * 3 * d * d, .3f);
  w.read_bias = random.floats(B * 3 * d, .1f);
  w.merge_weight = random.halves(B * d * d, .3f);
  w.merge_bias = random.floats(B * d, .1f);
  w.middle_gain = random.floats(B * d, .2f, 1);
  w.middle_bias = random.floats(B * d, .1f);
  w.up_weight = random.halves(B * 4 * d * d, .3f);
  w.up_bias = random.floats(B * 4 * d, .1f);
  w.down_weight = random.halves(B * d * 4 * d, .2f);
  w.down_bias = random.floats(B * d, .1f);
  w.norm_gain = random.floats(d, .2f, 1);
  w.norm_bias = random.floats(d, .1f);
  w.use_weight = random.halves(L * N * E * d, .2f);
  w.own_weight = random.floats(D > 0 ? L * N * (D + 2) : 0, .2f);
  w.own_bias = random.floats(L * N * E, .3f);
  w.next_scale = random.floats(L * N, .1f, 1);
  w.gap_weight = random.floats(std::size_t(c.limits) * (1 + N), .2f, 1.5f);
  w.horizon_weight = random.halves(F * d * d, .3f);
  w.ahead_weight = random.halves(F > 0 ? L * E * d : 0, .3f);
  w.ahead_bias = random.floats(F * L * E, .2f);
  w.ahead_scale = random.floats(F * L, .1f, 1);
  return w;
}

}  // namespace prophet::small_transformer
