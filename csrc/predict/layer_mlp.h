// A small network per layer, as ProMoE, PreScope, DuoServe-MoE and FloE have one each: what is
// known when the router of layer l has spoken → which experts layer l + stride asks for.
//
//   x = [path | affinity | hidden],   h = relu(x enter + bias),   p = sigmoid(h leave + bias)
//
//   path      for each of the last `context` layers of the token, ones at the experts it chose;
//             layers before the first are zeros
//   affinity  mean over the experts just chosen of how often each expert of the target follows them
//   hidden    what the router read
//
// Each of the three may be left out. Of a step of several tokens the last one is seen. prophet_moe/
// predict/layer_mlp.py trains them and writes their file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/types.h"
#include "predict/predictor.h"

namespace prophet {

struct LayerMlpWeights {
  Geometry geometry;
  std::string name;
  std::int32_t stride = 1;   // layers ahead
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

// Throws InvalidArgument: a stride that leaves no layer, arrays of other sizes, numbers that are
// not finite.
std::unique_ptr<Predictor> make_layer_mlp(std::shared_ptr<const LayerMlpWeights> weights);

}  // namespace prophet
