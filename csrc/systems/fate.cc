// Fate: the next layer's router is applied to what this layer's router read; somewhat more than
// top-k of its experts are brought. Without training.
#include "systems/recipes.h"

namespace prophet::systems {

Recipe fate() {
  Recipe r;
  r.name = "fate";
  r.what =
      "applies the next layer's router to this layer's hidden state, and brings somewhat more than "
      "top-k";
  r.source = "arXiv 2502.12224";
  r.modelled = "gate reuse, two experts more than top-k";
  r.not_modelled = "the first layers pinned, ARC per layer (LRU here), its order of prefill";
  r.needs = {.predictor = "next-gate", .hidden = true, .router = true};
  r.policy = "lru-foreseen";
  r.prefetch = unchecked(1, 1, PrefetchRule::Order::confidence);
  r.widen = 2;
  r.lossy = {"unpopular experts in 2 bits", 0.5};
  return r;
}

}  // namespace prophet::systems
