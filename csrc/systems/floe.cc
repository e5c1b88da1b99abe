// FloE: a network per layer reads the hidden state and the last choices and names the next layer's
// experts. Its gain comes from moving a tenth of an expert's bytes, which changes outputs: off
// unless asked for.
#include "systems/recipes.h"

namespace prophet::systems {

Recipe floe() {
  Recipe r;
  r.name = "floe";
  r.what =
      "a network per layer names the next layer's experts; whole experts move unless its sparsity "
      "is asked for";
  r.source = "arXiv 2505.05950";
  r.modelled = "its predictor with whole experts";
  r.not_modelled = "sparse kernels, and the loss of accuracy (4.4 to 7.6 % by the paper)";
  r.needs = {.predictor = "layer-mlp", .trained = true, .hidden = true};
  r.policy = "lru-foreseen";
  r.prefetch = unchecked(1, 1, PrefetchRule::Order::confidence);
  r.widen = 0;
  r.lossy = {"only active columns of experts move", 1 / 9.3};
  return r;
}

}  // namespace prophet::systems
