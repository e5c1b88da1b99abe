// Belady: the expert whose next use is farthest in the real future goes first. No policy with the
// same slots brings fewer experts; the time it takes is no bound, for nothing comes early.
#include "systems/recipes.h"

namespace prophet::systems {

Recipe belady() {
  Recipe r;
  r.name = "belady";
  r.what = "knows the future, and lets go what is used farthest ahead";
  r.source = "Belady 1966";
  r.modelled = "all";
  r.needs = {.future = true};
  r.policy = "belady";
  r.bound = Recipe::Bound::misses;
  return r;
}

}  // namespace prophet::systems
