// Expected next use: the expert whose next use is expected farthest ahead goes first, by decayed
// frequencies and the order of layers (policy/eviction_expected_next_use.cc). The best classical
// policy here, and what Prophet falls back on.
#include "systems/recipes.h"

namespace prophet::systems {

Recipe expected_next_use() {
  Recipe r;
  r.name = "expected-next-use";
  r.what =
      "keeps the experts whose next use is soonest, by decayed frequencies and the order of layers";
  r.source = "this project";
  r.modelled = "all";
  r.policy = "expected-next-use";
  return r;
}

}  // namespace prophet::systems
