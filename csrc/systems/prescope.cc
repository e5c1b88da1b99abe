// PreScope (LayerScope): a small network per layer reads the reduced hidden state and names the
// experts of the next layer; only as many are brought as fit into the slack that the layer's own
// demands leave.
#include "systems/recipes.h"

namespace prophet::systems {

Recipe prescope() {
  Recipe r;
  r.name = "prescope";
  r.what =
      "a network per layer names the next layer's experts; a budget of slack bounds what is "
      "brought";
  r.source = "arXiv 2509.23638";
  r.modelled = "its predictor, trained here, and the slack budget";
  r.not_modelled =
      "the share of the processor in computing experts, the table of hot experts, online refits";
  r.needs = {.predictor = "layer-mlp", .trained = true, .hidden = true};
  r.policy = "lru-foreseen";
  r.prefetch = unchecked(1, 1, PrefetchRule::Order::confidence, 1);
  r.widen = 0;
  return r;
}

}  // namespace prophet::systems
