// Resident: every expert is in fast memory and nothing moves. The time of computing alone.
#include "systems/recipes.h"

namespace prophet::systems {

Recipe resident() {
  Recipe r;
  r.name = "resident";
  r.what = "has every expert in fast memory";
  r.source = "bound";
  r.modelled = "all";
  r.bound = Recipe::Bound::resident;
  return r;
}

}  // namespace prophet::systems
