// Pre-attention prediction: a small network per layer reads what enters the layer, and names the
// experts of that same layer; its attention is the time to bring them. It works for the first layer
// as for any other, knows more than any network that looks across layers, and has the least time.
//
// The published network is wider (2048), with a norm and GELU between its two linear maps; here it
// is as wide as the other rivals' (128) with ReLU. Its loss is the paper's: cross-entropy weighted
// by the true experts' ranks, and a margin between true and false ones.
#include "systems/recipes.h"

namespace prophet::systems {

Recipe pre_attention() {
  Recipe r;
  r.name = "pre-attention";
  r.what = "a network on the state before attention names the same layer's experts";
  r.source = "arXiv 2511.10676";
  r.modelled = "its predictor, trained here by its loss; the window of one attention";
  r.not_modelled = "the width of its network; its use beside a predictor that looks further ahead";
  r.needs = {.predictor = "layer-mlp", .trained = true, .entering = true};
  r.policy = "lru-foreseen";
  r.prefetch = unchecked(1, 1, PrefetchRule::Order::confidence);
  r.widen = 0;
  return r;
}

}  // namespace prophet::systems
