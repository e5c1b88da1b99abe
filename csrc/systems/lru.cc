// LRU: what the router asks for stays until it is the one that was used longest ago.
#include "systems/recipes.h"

namespace prophet::systems {

Recipe lru() {
  Recipe r;
  r.name = "lru";
  r.what = "keeps the experts used last";
  r.source = "textbook";
  r.modelled = "all";
  return r;
}

}  // namespace prophet::systems
