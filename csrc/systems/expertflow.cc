// ExpertFlow (2024): an encoder and decoder reads the text so far and names, before layer 0, the
// experts of all layers; slots are dealt out to layers by demand, and what was named and not used
// goes first.
#include "systems/recipes.h"

namespace prophet::systems {

Recipe expertflow() {
  Recipe r;
  r.name = "expertflow";
  r.what = "a network on the text names the experts of all layers before the first one runs";
  r.source = "arXiv 2410.17954";
  r.modelled = "nothing yet";
  r.not_modelled =
      "the predictor: the runtime shows predictors what routers say, and no text; the token "
      "scheduler, which changes batches";
  r.needs = {
      .predictor = "text",
      .trained = true,
      .absent = "a predictor that reads the text, which this release neither trains nor feeds"};
  r.policy = "lru-foreseen";
  r.prefetch = unchecked(1, kAllLayers, PrefetchRule::Order::deadline);
  r.widen = 0;
  return r;
}

}  // namespace prophet::systems
