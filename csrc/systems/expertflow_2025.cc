// ExpertFlow (2025): the routers of the next layers are applied to what this layer's router read,
// as many layers ahead as bandwidth and stalls suggest. Eviction is LRU, what is foreseen last.
//
// A reconstruction from second-hand accounts: the exact rule of the step was not found. Here every
// one of three layers ahead is foretold, and a plan holds what the idle time of the link brings in
// time.
#include "systems/recipes.h"

namespace prophet::systems {

Recipe expertflow_2025() {
  Recipe r;
  r.name = "expertflow-2025";
  r.what =
      "applies the next routers to this layer's hidden state, as far ahead as the link keeps up";
  r.source = "arXiv 2510.26730 (reconstructed)";
  r.modelled = "gate reuse up to three layers ahead, a step that follows the idle bandwidth";
  r.not_modelled =
      "its trained half, its feedback from stalls, and its cache-aware routing, which changes "
      "outputs";
  r.needs = {.predictor = "next-gate", .hidden = true, .router = true};
  r.policy = "lru-foreseen";
  r.prefetch = unchecked(1, 3, PrefetchRule::Order::deadline, 1);
  r.widen = 0;
  return r;
}

}  // namespace prophet::systems
