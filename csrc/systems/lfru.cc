// LFRU: the expert with the smallest count of uses over the time since its last one goes first; the
// strongest simple rule of arXiv 2608.07911.
#include "systems/recipes.h"

namespace prophet::systems {

Recipe lfru() {
  Recipe r;
  r.name = "lfru";
  r.what = "keeps the experts with the most uses for the time since their last one";
  r.source = "arXiv 2608.07911";
  r.modelled = "all";
  r.policy = "lfru";
  return r;
}

}  // namespace prophet::systems
