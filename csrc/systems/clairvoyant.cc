// Clairvoyant: Belady's misses, brought by a link that never waits for anything but slots. No
// system with the same slots and the same link takes less time on average (sim/clairvoyant.h has
// the argument); single tokens may.
#include "systems/recipes.h"

namespace prophet::systems {

Recipe clairvoyant() {
  Recipe r;
  r.name = "clairvoyant";
  r.what = "the time that no system with these slots and this link can go below";
  r.source = "bound";
  r.modelled = "a relaxation: transfers may begin as early as slots could be free";
  r.needs = {.future = true};
  r.policy = "belady";
  r.bound = Recipe::Bound::time;
  return r;
}

}  // namespace prophet::systems
