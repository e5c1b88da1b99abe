// On-demand: an expert is brought when the router asks for it and dropped after its use. The floor
// of every comparison, at the same pinned, chunked lane as all others.
#include "systems/recipes.h"

namespace prophet::systems {

Recipe on_demand() {
  Recipe r;
  r.name = "on-demand";
  r.what = "every expert is brought when the router asks, and dropped after its use";
  r.source = "the floor";
  r.modelled = "all";
  r.keep = false;
  return r;
}

}  // namespace prophet::systems
