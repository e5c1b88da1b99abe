// Pre-attention prediction: what enters a layer → the experts of that same layer, while its
// attention is still to come. A network per layer (layer_mlp_network.h, stride 0) reads
//
//   x / sqrt(mean(x^2) + 1e-6)
//
// which is the layer's own first norm but for its gains, and those are the network's to learn. Of a
// pass of several tokens the last one is seen. Works for every layer, the first included; knows
// nothing between the word of a router and the approach of the next layer.
#pragma once

#include <memory>

#include "predict/layer_mlp_network.h"
#include "predict/predictor.h"

namespace prophet {

// Throws InvalidArgument as LayerMlpNetwork does, and for weights that read anything else.
std::unique_ptr<Predictor> make_pre_attention(std::shared_ptr<const LayerMlpWeights> weights);

}  // namespace prophet
