// LFU: the expert with the fewest uses since the start goes first. Counts never fade.
#include "systems/recipes.h"

namespace prophet::systems {

Recipe lfu() {
  Recipe r;
  r.name = "lfu";
  r.what = "keeps the experts used most often";
  r.source = "textbook";
  r.modelled = "all";
  r.policy = "lfu";
  return r;
}

}  // namespace prophet::systems
