#include "systems/recipes.h"

#include "core/error.h"

namespace prophet {

const std::vector<Recipe>& recipes() {
  using namespace systems;
  static const std::vector<Recipe> all = {
      on_demand(),    lru(),           lfu(),
      lfru(),         least_stale(),   expected_next_use(),
      promoe(),       expertflow(),    expertflow_2025(),
      prescope(),     finemoe(),       fate(),
      moe_infinity(), duoserve(),      floe(),
      od_moe(),       pre_attention(), systems::prophet(),
      belady(),       oracle(),        clairvoyant(),
      resident(),
  };
  return all;
}

const Recipe& recipe(std::string_view name) {
  std::string known;
  for (const Recipe& one : recipes()) {
    if (one.name == name) return one;
    known += (known.empty() ? "" : ", ") + std::string(one.name);
  }
  throw InvalidArgument("'" + std::string(name) + "' is not a system: the names are " + known);
}

}  // namespace prophet
