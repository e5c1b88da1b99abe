// A small network per layer, as ProMoE, PreScope, DuoServe-MoE and FloE have one each: what is
// known when the router of layer l has spoken → which experts layer l + stride asks for.
//
//   path      for each of the last `context` layers of the token, ones at the experts it chose;
//             layers before the first are zeros
//   affinity  mean over the experts just chosen of how often each expert of the target follows them
//   hidden    what the router read
//
// Each of the three may be left out; layer_mlp_network.h has the arithmetic. Of a step of several
// tokens the last one is seen.
#pragma once

#include <memory>

#include "predict/layer_mlp_network.h"
#include "predict/predictor.h"

namespace prophet {

// Of stride 0: make_pre_attention. Throws InvalidArgument as LayerMlpNetwork does.
std::unique_ptr<Predictor> make_layer_mlp(std::shared_ptr<const LayerMlpWeights> weights);

}  // namespace prophet
