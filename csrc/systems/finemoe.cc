// FineMoE: the gate probabilities of a token so far are compared with those of past tokens, and the
// nearest one's probabilities three layers on are what is brought
// (predict/predictor_expert_map.cc), by probability over distance. Eviction weighs the same
// probabilities by frequency.
#include "systems/recipes.h"

namespace prophet::systems {

Recipe finemoe() {
  Recipe r;
  r.name = "finemoe";
  r.what = "brings what the most similar past token used three layers on";
  r.source = "arXiv 2502.05370";
  r.modelled = "the search along the trajectory, its selection, priorities, store and eviction";
  r.not_modelled =
      "the search by the text's embedding, for the first three layers; probabilities of experts "
      "that were not chosen, which traces and the runtime do not carry";
  r.needs = {.predictor = "expert-map"};
  r.policy = "expert-map";
  r.prefetch = unchecked(1, 3, PrefetchRule::Order::proximity);
  return r;
}

}  // namespace prophet::systems
