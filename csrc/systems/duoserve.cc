// DuoServe-MoE: in decoding a network per layer reads the token's path through the layers so far
// and how often experts follow one another, and names the next layer's experts; few slots, no long-
// lived cache. A reconstruction: depth and loss are not known.
#include "systems/recipes.h"

namespace prophet::systems {

Recipe duoserve() {
  Recipe r;
  r.name = "duoserve";
  r.what = "a network per layer on the token's path names the next layer's experts";
  r.source = "arXiv 2509.07379 (reconstructed)";
  r.modelled = "its predictor, trained here on the same traces, top-k one layer ahead";
  r.not_modelled = "its two streams in prefill, its limit of 2 k slots: it gets the slots of all";
  r.needs = {.predictor = "layer-mlp", .trained = true};
  r.policy = "lru-foreseen";
  r.prefetch = unchecked(1, 1, PrefetchRule::Order::confidence);
  r.widen = 0;
  return r;
}

}  // namespace prophet::systems
