// The weights of the paper's transformer, as its file has them and as the arithmetic reads them.
//
// TransformerWeights hold the tensors of prophet_moe/predict/paper_file.py, where the arithmetic is
// told. TransformerNetwork checks them once and lays them out: matrices lie in tiles
// (kernels/predictor_math.h), every vector is padded to kPredictorLanes with zeros, and so is every
// attention head by itself. It never changes, so predictors share it.
#pragma once

#include <cstdint>
#include <vector>

#include "core/types.h"
#include "predict/tensor_checks.h"

namespace prophet {

// Names and meanings as in the file's `config`.
struct TransformerConfig {
  Geometry geometry;
  std::int32_t width = 0;
  std::int32_t depth = 0;
  std::int32_t attention_heads = 0;
  std::int32_t context = 0;  // layers of the token that are read, the newest among them
  std::vector<float> decays;
  std::int32_t heads = 0;
  std::int32_t limits = 0;
  std::int32_t limit = 0;  // which truncation of the gap is in force
  std::int32_t ahead = 0;
  bool history = true;
  std::int32_t hidden = 0;
};

// Tensors as in the file; float16 as raw bits. Empty where a dimension is zero. Matrices are
// [outputs, inputs]; those of a block come once for each of the `depth` blocks.
struct TransformerWeights {
  using Half = std::vector<std::uint16_t>;
  using Float = std::vector<float>;
  Half expert;                        // [L, E, d]
  Float layer, pad, place;            // [L, d], [context, d], [context + 1, d]
  Half project_weight;                // [d, hidden]
  Float project_bias;                 // [d]
  Float enter_gain, enter_bias;       // [depth, d] twice: the norm before attention
  Half read_weight;                   // [depth, 3 d, d]: queries, keys, values
  Float read_bias;                    // [depth, 3 d]
  Half merge_weight;                  // [depth, d, d]
  Float merge_bias;                   // [depth, d]
  Float middle_gain, middle_bias;     // [depth, d] twice: the norm before the layers that follow
  Half up_weight;                     // [depth, 4 d, d]
  Float up_bias;                      // [depth, 4 d]
  Half down_weight;                   // [depth, d, 4 d]
  Float down_bias;                    // [depth, d]
  Float norm_gain, norm_bias;         // [d] twice
  Half use_weight;                    // [L, N, E, d]
  Float own_weight, own_bias;         // [L, N, D + 2], [L, N, E]
  Float next_scale, gap_weight;       // [L, N], [limits, 1 + N]
  Half horizon_weight, ahead_weight;  // [F, d, d], [L, E, d]
  Float ahead_bias, ahead_scale;      // [F, L, E], [F, L]
};

class TransformerNetwork {
 public:
  // Throws InvalidArgument when a tensor has another size than the configuration gives it, or holds
  // a number that is not finite.
  TransformerNetwork(TransformerConfig config, const TransformerWeights& weights);

  // One block. Vectors are padded as the outputs of their matrices are.
  struct Block {
    std::vector<float> enter_gain, enter_bias, read_bias, merge_bias;
    std::vector<float> middle_gain, middle_bias, up_bias, down_bias;
    // Tiles: queries, keys and values after each other, each [attended, columns]; the others are
    // [columns, attended], [inner, columns] and [columns, inner].
    const std::uint16_t *read, *merge, *up, *down;
  };

  const TransformerConfig& config() const { return config_; }
  std::size_t layers() const { return std::size_t(config_.geometry.layers); }
  std::size_t experts() const { return std::size_t(config_.geometry.experts_per_layer); }
  std::size_t columns() const { return columns_; }       // of the network, padded
  std::size_t head_columns() const { return head_; }     // of one attention head, padded
  std::size_t attended() const { return attended_; }     // attention heads * head_columns
  std::size_t inner() const { return inner_; }           // 4 * width, padded
  std::size_t read_columns() const { return reading_; }  // the hidden state's width, padded
  std::size_t lanes() const { return lanes_; }           // experts of a layer, padded
  std::size_t leaves() const { return leaves_; }         // heads * experts, padded

  const std::vector<Block>& blocks() const { return blocks_; }
  const std::uint16_t* entry(std::size_t layer, std::size_t expert) const {  // [columns]
    return entries_ + (layer * experts() + expert) * columns_;
  }
  // Tiles; f = 1, 2, ...
  const std::uint16_t* project() const { return project_; }  // [columns, read_columns]
  const std::uint16_t* use(std::size_t layer) const { return use_ + layer * leaves_ * columns_; }
  const std::uint16_t* horizon(std::size_t f) const {
    return horizon_ + (f - 1) * columns_ * columns_;
  }
  const std::uint16_t* ahead(std::size_t layer) const {  // the layer that is forecast
    return ahead_ + layer * lanes_ * columns_;
  }

  // Padded to columns or lanes.
  std::vector<float> layer, pad, place, project_bias, norm_gain, norm_bias;  // [.., columns]
  std::vector<float> own_bias, ahead_bias;                                   // [.., lanes]
  std::vector<float> mix;  // [N, N] ones on the diagonal: every head has an output of its own
  // As in the file.
  std::vector<float> own_weight, next_scale, gap_weight, ahead_scale;

 private:
  void check(const TransformerWeights& weights) const;
  void take_floats(const TransformerWeights& weights);
  void take_halves(const TransformerWeights& weights);

  const TransformerConfig config_;
  std::size_t columns_ = 0, head_ = 0, attended_ = 0, inner_ = 0, reading_ = 0, lanes_ = 0,
              leaves_ = 0;
  std::vector<Block> blocks_;
  HalfMemory halves_;
  std::uint16_t *entries_ = nullptr, *project_ = nullptr, *use_ = nullptr, *horizon_ = nullptr,
                *ahead_ = nullptr;
};

}  // namespace prophet
