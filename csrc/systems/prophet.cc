// Prophet: a network over the routing of all layers says when each expert is used again, which
// decides who leaves, and what the coming layers need, which is brought on idle link time while
// that pays (engine/planner.h). Where hidden states and the routers' weights are at hand, the next
// routers applied to what this layer's router read have their say about the coming layers, too
// (predict/joint_predictor.h).
#include "systems/recipes.h"

namespace prophet::systems {

Recipe prophet() {
  Recipe r;
  r.name = "prophet";
  r.what =
      "a network over the routing of all layers decides who leaves, and what comes early while "
      "that pays";
  r.source = "this project";
  r.modelled = "all";
  r.needs = {.predictor = "bank", .trained = true, .gates = true};
  r.policy = "expected-next-use";
  r.prefetch.last = 12;
  r.prefetch.least = 0.05f;
  r.prefetch.order = PrefetchRule::Order::confidence;
  return r;
}

}  // namespace prophet::systems
