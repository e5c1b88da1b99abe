// Oracle: the experts of a whole token ahead are known and brought in order of layers; who leaves
// is decided by the best classical policy, which knows of the future what is wished. What perfect
// prefetching is worth.
#include "systems/recipes.h"

namespace prophet::systems {

Recipe oracle() {
  Recipe r;
  r.name = "oracle";
  r.what =
      "knows the next token's worth of layers and brings them in order; evicts by expected next "
      "use";
  r.source = "bound";
  r.modelled = "all; not a bound on time";
  r.needs = {.predictor = "emulator", .future = true};
  r.policy = "expected-next-use";
  r.prefetch = unchecked(1, kAllLayers, PrefetchRule::Order::deadline);
  r.next_token = true;
  r.bound = Recipe::Bound::foresight;
  return r;
}

}  // namespace prophet::systems
