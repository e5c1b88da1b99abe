// ProMoE: a small network per layer reads what the router of layer l reads and names the experts of
// layer l + 2, so that predicting and copying overlap. They are brought in order of layers, without
// a threshold; a router that has spoken ends the prefetches of its layer. Eviction is LRU per
// layer, touched by forecasts.
#include "systems/recipes.h"

namespace prophet::systems {

Recipe promoe() {
  Recipe r;
  r.name = "promoe";
  r.what = "a network per layer on the hidden state names the experts two layers ahead";
  r.source = "arXiv 2410.22134";
  r.modelled = "stride of two layers, chunks, early preemption, experts computed as they land";
  r.not_modelled =
      "its own processor thread for predictions; here they are charged where they run; a pool per "
      "layer, unless all have one";
  r.needs = {.predictor = "layer-mlp", .trained = true, .hidden = true};
  r.policy = "lru-foreseen";
  r.prefetch = unchecked(2, 2, PrefetchRule::Order::deadline);
  r.widen = 0;
  return r;
}

}  // namespace prophet::systems
