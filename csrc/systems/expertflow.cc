// ExpertFlow (2024): a network reads the text so far and names, before layer 0, the experts of all
// layers: those with a probability above 0.5. They are brought in order of layers; a router that
// has spoken ends the prefetches of its layer. Slots belong to whichever layers are forecast to
// need them: what is named counts as touched.
//
// The published network is an encoder and decoder over the tokens (T5, 7 MB) that is run anew for
// every token; here a recurrent one carries a state from token to token, so that a step costs the
// same however long the text is. Both read token ids alone, and both are trained per model by
// cross-entropy over all experts of all layers.
#include "systems/recipes.h"

namespace prophet::systems {

Recipe expertflow() {
  Recipe r;
  r.name = "expertflow";
  r.what = "a network on the text names the experts of all layers before the first one runs";
  r.source = "arXiv 2410.17954";
  r.modelled =
      "a network on the token ids, trained here, its threshold, a word on all layers at once";
  r.not_modelled =
      "its architecture (recurrent here); that what was named and not used goes first; the token "
      "scheduler, which changes batches";
  r.needs = {.predictor = "text", .trained = true, .tokens = true};
  r.policy = "lru-foreseen";
  r.prefetch = unchecked(1, kAllLayers, PrefetchRule::Order::deadline);
  r.prefetch.least = 0.5f;
  return r;
}

}  // namespace prophet::systems
