// The learned forecaster: a bank of decayed averages and a low-rank network over all layers.
//
// What it computes, and the tensors it reads, are specified in
// python/prophet_moe/predict/export.py; this is the same arithmetic, made incremental: the entry of
// the network is linear, so each layer keeps its share of it, and a layer step touches the K rows
// of the experts just chosen. Cost of a step with E experts, rank R, M latents, F layers ahead:
// about R * R + (M + F) * E * R multiply-adds.
#pragma once

#include <cstdint>
#include <vector>

#include "predict/predictor.h"

namespace prophet {

// Names and meanings as in the file's `config`.
struct BankConfig {
  struct Recent {
    std::int32_t lag = 0;
    bool gate = false;
  };
  Geometry geometry;
  std::int32_t rank = 0;
  std::vector<float> decays;
  std::vector<std::int32_t> bank;
  std::vector<Recent> recent;
  std::int32_t heads = 0;
  std::int32_t latents = 0;
  std::int32_t limits = 0;
  std::int32_t limit = 0;  // which truncation of the gap is in force
  std::int32_t ahead = 0;
  bool pair = false;
  std::int32_t hidden = 0;
};

// Tensors as in the file; float16 as raw bits. Empty where a dimension is zero.
struct BankWeights {
  using Half = std::vector<std::uint16_t>;
  using Float = std::vector<float>;
  Half enter_bank, enter_recent, enter_hidden;
  Float enter_bias, norm_gain, norm_bias;
  Half mid_weight;
  Float mid_bias;
  Half leave_weight;
  Float leave_bias, leave_mix, own_weight, own_bias, next_scale, gap_weight;
  Half ahead_weight;
  Float ahead_bias, ahead_prior;
  Half ahead_pair;
  Float ahead_scale;
};

class BankPredictor final : public Predictor {
 public:
  // Throws InvalidArgument when a tensor has another size than the configuration gives it,
  // or holds a number that is not finite.
  BankPredictor(BankConfig config, BankWeights weights);

  std::string name() const override { return "bank"; }
  std::int32_t hidden_width() const override { return config_.hidden; }
  void reset() override;
  void observe(const Glimpse& glimpse) override;
  bool next_use(std::int32_t layer, std::span<float> gaps) override;
  void forecast(std::int32_t layer, std::vector<Forecast>& out) override;

 private:
  // One token's choice in one layer: expert ids and gates, at most top_k.
  struct Row {
    std::vector<std::int32_t> experts;
    std::vector<float> gates;
  };

  void check() const;
  void take_row(std::int32_t layer, const Glimpse& glimpse, std::int32_t token);
  void decay_averages(std::int32_t layer);
  void update_share(std::int32_t layer);
  void update_hidden(const Glimpse& glimpse);
  void run_network(std::int32_t layer);
  const Row& row(std::int32_t layer, std::int32_t lag) const;

  std::size_t experts() const { return std::size_t(config_.geometry.experts_per_layer); }
  std::size_t layers() const { return std::size_t(config_.geometry.layers); }
  std::size_t rank() const { return std::size_t(config_.rank); }

  const BankConfig config_;
  const BankWeights weights_;
  std::size_t lags_ = 1;  // rows kept per layer

  // State, see "What a runtime keeps".
  std::vector<float> averages_;  // [L, D, E]
  std::vector<float> banks_;     // [L, B, R]
  std::vector<float> shares_;    // [L, R]
  std::vector<float> raw_;       // [L, E] last raw logit of the first head
  std::vector<Row> rows_;        // [L, lags] newest first
  std::vector<float> entered_;   // [R]: enter.bias + sum of shares
  std::vector<float> hidden_;    // [R]
  std::vector<float> deep_;      // [R]: c of the layer observed last
  std::int32_t seen_ = -1;       // that layer

  // Scratch.
  std::vector<float> a_, b_, wide_, logits_, features_, outputs_;
};

}  // namespace prophet
