// The paper's transformer: an encoder over what the last layers of a token chose.
//
// The arithmetic is told in prophet_moe/predict/paper_file.py. What was added up for a layer's set
// is kept for the layers that follow, the last block works for the last position alone, and all
// rows and positions go through a matrix together. Nothing else can be kept: a layer's place
// among those that are read changes with every step. A step of one token reads all weights of the
// blocks once and multiplies them `context` times; bench/micro/predictor_bench.cc measures it.
//
// Of a step of several tokens the last kMostRows are looked at; what is told of the layers ahead is
// then that any of them needs an expert, 1 - prod(1 - p). With a hidden state in the network, which
// a glimpse has of its last token alone, only that token is looked at.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "predict/own_layer.h"
#include "predict/predictor.h"
#include "predict/transformer_network.h"

namespace prophet {

class TransformerPredictor final : public Predictor {
 public:
  static constexpr std::int32_t kMostRows = 8;

  explicit TransformerPredictor(std::shared_ptr<const TransformerNetwork> network);

  std::string name() const override { return "transformer"; }
  std::int32_t hidden_width() const override { return network_->config().hidden; }
  void reset() override;
  void observe(const Glimpse& glimpse) override;
  bool next_use(std::int32_t layer, std::span<float> gaps) override;
  void forecast(std::int32_t layer, std::vector<Forecast>& out) override;

  // Layers after `layer` that it can speak of.
  std::int32_t horizons(std::int32_t layer) const;
  // P(needed by the tokens of the step) of every expert of layer + horizon; `p` has
  // experts_per_layer entries.
  void probabilities(std::int32_t layer, std::int32_t horizon, std::span<float> p);

 private:
  // What one layer's routers chose in the running pass, as sums of embeddings.
  struct Sets {
    std::int32_t layer = -1;
    std::size_t rows = 0;
    std::vector<float> sums;  // [rows, columns]
  };

  void take_sets(const Glimpse& glimpse);
  void enter_sets(std::int32_t layer);
  void enter_hidden(const Glimpse& glimpse);
  void run_block(const TransformerNetwork::Block& block, bool last);
  void norm(const std::vector<float>& gain, const std::vector<float>& bias, std::size_t first);
  void multiply(const std::uint16_t* tiles, std::size_t n, const std::vector<float>& x,
                std::size_t columns, std::size_t first, float* y, std::size_t y_stride);
  void add(const std::vector<float>& bias, std::size_t first);
  void look_ahead(std::int32_t layer, std::int32_t horizon);

  const std::shared_ptr<const TransformerNetwork> network_;
  OwnLayer own_;
  std::vector<Sets> sets_;  // [context], layer l at l % context
  OwnLayer::Row row_;
  std::size_t rows_ = 0, positions_ = 0;  // of the running step
  std::int32_t seen_ = -1;

  // [positions, rows, ...]: the state of the network, and what its parts make of it.
  std::vector<float> x_, normed_, read_, attended_, inner_, more_;
  std::vector<float> deep_;  // [rows, columns] of the layer observed last
  std::vector<float> turned_, outputs_, raw_, zeros_, gaps_, p_, idle_, hidden_;
  std::vector<const std::uint16_t*> sources_;
  std::vector<float> scales_;
};

}  // namespace prophet
