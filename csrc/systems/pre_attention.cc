// Pre-attention prediction: a network reads the state before a layer's attention and names the
// experts of that same layer; the attention is the time to bring them.
#include "systems/recipes.h"

namespace prophet::systems {

Recipe pre_attention() {
  Recipe r;
  r.name = "pre-attention";
  r.what = "a network on the state before attention names the same layer's experts";
  r.source = "arXiv 2511.10676";
  r.modelled = "nothing yet";
  r.not_modelled = "the predictor";
  r.needs = {.predictor = "pre-attention",
             .trained = true,
             .hidden = true,
             .absent =
                 "the state before each attention, which traces do not hold and the runtime does "
                 "not show"};
  r.policy = "lru-foreseen";
  r.prefetch = unchecked(1, 1, PrefetchRule::Order::confidence);
  r.widen = 0;
  return r;
}

}  // namespace prophet::systems
