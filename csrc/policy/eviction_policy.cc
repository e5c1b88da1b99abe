#include "policy/eviction_policy.h"

#include <cstdint>
#include <limits>

#include "core/error.h"
#include "policy/eviction_registry.h"

namespace prophet {
namespace {

struct Entry {
  std::string_view name;
  std::unique_ptr<EvictionPolicy> (*make)(const Geometry&);
};

constexpr Entry kPolicies[] = {
    {"lru", make_lru},
    {"lfu", make_lfu},
    {"lfru", make_lfru},
    {"least-stale", make_least_stale},
    {"lru-foreseen", make_lru_foreseen},
    {"activation-matrix", make_activation_matrix},
    {"expert-map", make_expert_map},
    {"expected-next-use", make_expected_next_use},
};
constexpr Entry kBound = {"belady", make_belady};

void require_usable(const Geometry& geometry) {
  const std::int64_t total = std::int64_t{geometry.layers} * geometry.experts_per_layer;
  if (geometry.layers < 1 || geometry.experts_per_layer < 1 || geometry.top_k < 1 ||
      geometry.top_k > geometry.experts_per_layer ||
      total > std::numeric_limits<std::int32_t>::max()) {
    throw InvalidArgument("an eviction policy cannot serve " + std::to_string(geometry.layers) +
                          " layers of " + std::to_string(geometry.experts_per_layer) +
                          " experts with top-k " + std::to_string(geometry.top_k) +
                          "; give at least one layer and one expert, 1 <= top-k <= experts, and "
                          "fewer than 2^31 experts in all");
  }
}

}  // namespace

std::unique_ptr<EvictionPolicy> make_eviction_policy(std::string_view name,
                                                     const Geometry& geometry) {
  for (const Entry& entry : kPolicies) {
    if (entry.name == name) {
      require_usable(geometry);
      return entry.make(geometry);
    }
  }
  if (name == kBound.name) {
    require_usable(geometry);
    return kBound.make(geometry);
  }
  std::string known;
  for (const Entry& entry : kPolicies) {
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  throw InvalidArgument("there is no eviction policy '" + std::string(name) + "'; choose one of " +
                        known);
}

std::vector<std::string> eviction_policy_names() {
  std::vector<std::string> names;
  for (const Entry& entry : kPolicies) names.emplace_back(entry.name);
  return names;
}

}  // namespace prophet
