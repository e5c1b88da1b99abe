// The learned forecaster: a bank of decayed averages and a low-rank network over all layers.
//
// What it computes, and the tensors it reads, are specified in
// python/prophet_moe/predict/export.py; this is the same arithmetic, made incremental: the entry of
// the network is linear, so each layer keeps its share of it, and a layer step touches the rows
// of the experts just chosen. With E experts, rank R, M latents, B blocks and F layers ahead a step
// of one token reads about 2 R (B K + (M + F) E) bytes of weights, which is what it costs;
// bench/micro/predictor_bench.cc measures it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "predict/bank_network.h"
#include "predict/predictor.h"

namespace prophet {

struct CudaBankState;  // kernels/cuda_kernels.h

class BankPredictor final : public Predictor {
 public:
  explicit BankPredictor(std::shared_ptr<const BankNetwork> network);
  BankPredictor(BankConfig config, const BankWeights& weights)  // throws as BankNetwork does
      : BankPredictor(std::make_shared<const BankNetwork>(std::move(config), weights)) {}

  std::string name() const override { return "bank"; }
  std::int32_t hidden_width() const override { return network_->config().hidden; }
  BankPredictor* bank() override { return this; }
  void reset() override;
  void observe(const Glimpse& glimpse) override;
  bool next_use(std::int32_t layer, std::span<float> gaps) override;
  void forecast(std::int32_t layer, std::vector<Forecast>& out) override;

  // Layers after `layer` that it can speak of.
  std::int32_t horizons(std::int32_t layer) const;
  // P(needed by the same token) of every expert of layer + horizon; `p` has experts_per_layer
  // entries.
  void probabilities(std::int32_t layer, std::int32_t horizon, std::span<float> p);

  const BankNetwork& network() const { return *network_; }
  // What it remembers, for a device and back (predict/device_bank.h); addresses are the host's.
  // Throws InvalidArgument where a token chose more experts than a device remembers.
  void save(const CudaBankState& to) const;
  void load(const CudaBankState& from);

 private:
  // One token's choice in one layer: distinct expert ids and their gates.
  struct Row {
    std::vector<std::int32_t> experts;
    std::vector<float> gates;
  };

  void read_row(const Glimpse& glimpse, std::int32_t token, Row& row) const;
  void take_rows(const Glimpse& glimpse);
  void update_averages(std::size_t layer);
  void update_share(std::size_t layer);
  void update_hidden(const Glimpse& glimpse);
  void run_network(std::size_t layer);
  void fetch(std::size_t layer) const;
  void look_ahead(std::int32_t layer, std::int32_t horizon);
  void add_likely(std::int32_t layer, std::int32_t horizon, std::vector<Forecast>& out) const;

  Row& row(std::size_t layer, std::size_t lag) { return rows_[layer * lags_ + lag]; }
  float* averages(std::size_t layer) { return averages_.data() + layer * average_size_; }
  float* banks(std::size_t layer) { return shares_.data() + layer * share_size_; }
  float* share(std::size_t layer) { return banks(layer + 1) - network_->columns(); }
  float* raw(std::size_t layer) { return raw_.data() + layer * network_->lanes(); }

  const std::shared_ptr<const BankNetwork> network_;
  std::size_t lags_ = 2;  // rows kept per layer; own features look one row back
  std::size_t average_size_ = 0, share_size_ = 0;

  // State, see "What a runtime keeps".
  std::vector<float> averages_;  // [L, D, lanes]
  std::vector<float> shares_;    // [L, B + 1, columns]: the averages in the network, then P
  std::vector<float> raw_;       // [L, lanes] last raw logit of the first head
  std::vector<Row> rows_;        // [L, lags] newest first
  std::vector<float> entered_;   // [columns]: enter.bias + sum of shares
  std::vector<float> hidden_;    // [columns]
  std::vector<float> deep_;      // [columns]: c of the layer observed last
  std::int32_t seen_ = -1;       // that layer
  std::vector<float> told_;      // what the last glimpse brought (Glimpse::told); empty: nothing

  // Of the step that is being observed: what fades, and which experts gain how much.
  std::vector<float> keep_;           // [D] decay to the power of the rows taken
  std::vector<float> gains_;          // [E, D], zero but for experts that were chosen
  std::vector<std::int32_t> gained_;  // those experts
  std::vector<char> chosen_;          // [E] whether among them
  std::vector<const std::uint16_t*> sources_;
  std::vector<float> scales_, fresh_, middle_, outputs_, more_, gaps_, p_, scratch_;
  Row spare_;
};

}  // namespace prophet
