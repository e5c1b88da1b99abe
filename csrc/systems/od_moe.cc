// OD-MoE: a quantised copy of the whole model runs ahead of it, and its routing is the forecast of
// all later layers; nothing is kept after its use. On one link the copy's foresight cannot save a
// byte.
//
// Here the copy is emulated by the true routing with the recall that the paper reports for 8 bits.
#include "systems/recipes.h"

namespace prophet::systems {

Recipe od_moe() {
  Recipe r;
  r.name = "od-moe";
  r.what =
      "a quantised copy of the model runs ahead and names all later layers' experts; nothing is "
      "kept";
  r.source = "arXiv 2512.03927";
  r.modelled = "forecasts of 97.34 % recall for all later layers of the token, drop after use";
  r.not_modelled = "the copy itself, its memory and time; several nodes";
  r.needs = {.predictor = "emulator", .future = true};
  r.policy = "expected-next-use";
  r.keep = false;
  r.prefetch = unchecked(1, kAllLayers, PrefetchRule::Order::deadline);
  r.recall = 0.9734;
  return r;
}

}  // namespace prophet::systems
