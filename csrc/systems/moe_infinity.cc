// MoE-Infinity: the nearest activation matrix of past requests foretells all later layers
// (predict/predictor_activation_matrix.cc); everything it holds likely is brought, demands first.
// Eviction goes by the same matrix, and keeps early layers. This is the policy of the paper: the
// released package does not predict for most models.
#include "systems/recipes.h"

namespace prophet::systems {

Recipe moe_infinity() {
  Recipe r;
  r.name = "moe-infinity";
  r.what = "brings what the most similar past request used in later layers";
  r.source = "arXiv 2401.14361";
  r.modelled = "matching, prefetching and eviction by activation matrices";
  r.not_modelled =
      "the ends of requests, which routers do not say (64 tokens here); several devices";
  r.needs = {.predictor = "activation-matrix"};
  r.policy = "activation-matrix";
  r.prefetch = unchecked(1, kAllLayers, PrefetchRule::Order::confidence);
  return r;
}

}  // namespace prophet::systems
