// The weights of the learned forecaster, as its file has them and as the arithmetic reads them.
//
// BankWeights hold the tensors of prophet_moe/predict/export.py. BankNetwork checks them once and
// lays them out for a layer step: what one expert adds lies together, matrices lie in tiles,
// everything is padded to kPredictorLanes with zeros. It never changes, so predictors share it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/types.h"

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
  std::int32_t pairs = 0;  // layers that forecasts read directly: the present one and those before
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

class BankNetwork {
 public:
  // Throws InvalidArgument when a tensor has another size than the configuration gives it,
  // or holds a number that is not finite.
  BankNetwork(BankConfig config, const BankWeights& weights);

  const BankConfig& config() const { return config_; }
  std::size_t layers() const { return std::size_t(config_.geometry.layers); }
  std::size_t experts() const { return std::size_t(config_.geometry.experts_per_layer); }
  std::size_t banks() const { return config_.bank.size(); }
  std::size_t blocks() const { return banks() + config_.recent.size(); }
  std::size_t columns() const { return columns_; }  // of the network, padded
  std::size_t lanes() const { return lanes_; }      // experts of a layer, padded
  std::size_t leaves() const { return leaves_; }    // latents * experts, padded
  bool has_middle() const { return middle_ != nullptr; }

  // What an expert adds when it is chosen, [blocks, columns]: banks first, then recent blocks.
  const std::uint16_t* entries(std::size_t layer, std::size_t expert) const {
    return entries_ + (layer * experts() + expert) * blocks() * columns_;
  }
  const std::uint16_t* hidden(std::size_t layer) const {  // [hidden, columns]
    return hidden_ + layer * std::size_t(config_.hidden) * columns_;
  }
  // Tiles with `columns` columns.
  const std::uint16_t* middle() const { return middle_; }
  const std::uint16_t* leave(std::size_t layer) const {
    return leave_ + layer * leaves_ * columns_;
  }
  // f = 1, 2, ...; `layer` is the one that is forecast.
  const std::uint16_t* ahead(std::size_t f, std::size_t layer) const {
    return ahead_ + ((f - 1) * layers() + layer) * lanes_ * columns_;
  }
  // What `chosen`, of the layer `back` before the present one, says of `layer`, [lanes].
  const std::uint16_t* pair(std::size_t back, std::size_t f, std::size_t layer,
                            std::size_t chosen) const {
    const std::size_t at = back * std::size_t(config_.ahead) + f - 1;
    return pair_ + ((at * layers() + layer) * experts() + chosen) * lanes_;
  }

  // Padded to columns or lanes. leave.bias is part of own_bias.
  std::vector<float> enter_bias, norm_gain, norm_bias, mid_bias;  // [columns], [L, columns] twice
  std::vector<float> own_bias, ahead_bias;                        // [L, N, lanes], [F, L, lanes]
  std::vector<float> first_banks;  // [L, B, columns] before anything was seen
  // As in the file.
  std::vector<float> leave_mix, own_weight, next_scale, gap_weight, ahead_prior, ahead_scale;

 private:
  void check(const BankWeights& weights) const;
  void take_floats(const BankWeights& weights);
  void take_halves(const BankWeights& weights);

  struct Free {
    void operator()(std::uint16_t* memory) const;
  };

  const BankConfig config_;
  std::size_t columns_ = 0, lanes_ = 0, leaves_ = 0;
  std::unique_ptr<std::uint16_t, Free> halves_;  // all of them, one run of memory
  std::uint16_t *entries_ = nullptr, *hidden_ = nullptr, *middle_ = nullptr, *leave_ = nullptr,
                *ahead_ = nullptr, *pair_ = nullptr;
};

}  // namespace prophet
