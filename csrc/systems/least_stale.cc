// Least-Stale (SpecMD): what the running forward pass has not touched goes first, oldest first. By
// itself it names the victims of LRU (policy/eviction_least_stale.cc).
#include "systems/recipes.h"

namespace prophet::systems {

Recipe least_stale() {
  Recipe r;
  r.name = "least-stale";
  r.what = "keeps what the running pass has touched, then what was touched last";
  r.source = "SpecMD, arXiv 2602.03921";
  r.modelled = "its eviction";
  r.not_modelled = "its speculative prefetching, which is next-gate prefetching (see fate)";
  r.policy = "least-stale";
  return r;
}

}  // namespace prophet::systems
