// Eviction of FineMoE (arXiv 2502.05370): the victim is the evictable expert with the smallest
// product of its probability in the expert map found last and its count of uses. Recency is ignored
// on purpose, except among equals. One that was not used yet counts as used once.
#include <algorithm>

#include "policy/eviction_registry.h"
#include "policy/eviction_worth.h"

namespace prophet {
namespace {

struct ProbableAndFrequent {
  double operator()(const Prospect& expert, std::int32_t, std::int32_t) const {
    return expert.p * double(std::max<std::int64_t>(expert.uses, 1));
  }
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_expert_map(const Geometry& geometry) {
  return std::make_unique<WorthPolicy<ProbableAndFrequent>>(geometry, "expert-map");
}

}  // namespace prophet
