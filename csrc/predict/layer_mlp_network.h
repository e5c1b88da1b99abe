// The arithmetic of a small network per layer, as ProMoE, PreScope, DuoServe-MoE, FloE and
// pre-attention prediction have one each:
//
//   x = [path | affinity | hidden],   h = relu(x enter + bias),   p = sigmoid(h leave + bias)
//
// Which of the three it reads, and of which layer its outputs speak, is its predictor's
// (layer_mlp.h, pre_attention.h). prophet_moe/predict/layer_mlp.py trains them and writes their
// file.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/types.h"

namespace prophet {

struct LayerMlpWeights {
  Geometry geometry;
  std::string name;
  std::int32_t stride = 1;   // layers ahead; 0: the layer that is about to run
  std::int32_t context = 0;  // layers of the path; 0: no path
  std::int32_t hidden = 0;   // width of the hidden state; 0: not read
  std::int32_t width = 0;    // of h
  // For each of the S = layers - stride layers that foretell another, inputs F as above:
  std::vector<float> affinity;    // [S, E, E] from, to; or empty
  std::vector<float> enter;       // [S, F, width]
  std::vector<float> enter_bias;  // [S, width]
  std::vector<float> leave;       // [S, width, E]
  std::vector<float> leave_bias;  // [S, E]

  std::int32_t inputs() const {
    return (context + (affinity.empty() ? 0 : 1)) * geometry.experts_per_layer + hidden;
  }
};

class LayerMlpNetwork {
 public:
  // Throws InvalidArgument: a stride that leaves no layer, a width of nothing, nothing to read,
  // arrays of other sizes, numbers that are not finite.
  explicit LayerMlpNetwork(std::shared_ptr<const LayerMlpWeights> weights);

  const LayerMlpWeights& weights() const { return *weights_; }

  // One evaluation for `layer`: begin, then add each input that is not zero, then finish.
  void begin(std::int32_t layer);
  void add(std::size_t input, float value);
  // p of every expert of the target, each in [0, 1]; 0 where a sum was not finite.
  void finish(std::span<float> p);

 private:
  const std::shared_ptr<const LayerMlpWeights> weights_;
  std::size_t layer_ = 0;
  std::vector<float> h_;  // [width]
};

}  // namespace prophet
