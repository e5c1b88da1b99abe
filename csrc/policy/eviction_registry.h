// The constructors behind make_eviction_policy, one per eviction_*.cc; each file tells its
// algorithm.
#pragma once

#include <memory>

#include "policy/eviction_policy.h"

namespace prophet {

std::unique_ptr<EvictionPolicy> make_lru(const Geometry& geometry);
std::unique_ptr<EvictionPolicy> make_lfu(const Geometry& geometry);
std::unique_ptr<EvictionPolicy> make_lfru(const Geometry& geometry);
std::unique_ptr<EvictionPolicy> make_least_stale(const Geometry& geometry);
std::unique_ptr<EvictionPolicy> make_lru_foreseen(const Geometry& geometry);
std::unique_ptr<EvictionPolicy> make_activation_matrix(const Geometry& geometry);
std::unique_ptr<EvictionPolicy> make_expert_map(const Geometry& geometry);
std::unique_ptr<EvictionPolicy> make_expected_next_use(const Geometry& geometry);
std::unique_ptr<EvictionPolicy> make_belady(const Geometry& geometry);

}  // namespace prophet
