// The recipes behind recipe.h, one per file of this folder.
#pragma once

#include <limits>

#include "systems/recipe.h"

namespace prophet::systems {

Recipe on_demand();
Recipe lru();
Recipe lfu();
Recipe lfru();
Recipe least_stale();
Recipe expected_next_use();
Recipe promoe();
Recipe expertflow();
Recipe expertflow_2025();
Recipe prescope();
Recipe finemoe();
Recipe fate();
Recipe moe_infinity();
Recipe duoserve();
Recipe floe();
Recipe od_moe();
Recipe pre_attention();
Recipe prophet();
Recipe belady();
Recipe oracle();
Recipe clairvoyant();
Recipe resident();

// Prefetching as published systems do it: without conscience.
inline PrefetchRule unchecked(std::int32_t first, std::int32_t last, PrefetchRule::Order order,
                              double fill = std::numeric_limits<double>::infinity()) {
  PrefetchRule rule;
  rule.fill = fill;
  rule.first = first;
  rule.last = last;
  rule.order = order;
  rule.conscience = false;
  return rule;
}
constexpr std::int32_t kAllLayers = 1 << 20;

}  // namespace prophet::systems
