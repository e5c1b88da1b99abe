// Least frequently used: the victim is the evictable expert with the fewest uses since the policy
// was made, those of earlier stays included; among equals the least recently used, then the lowest
// index. Counts never fade, so the ranking hardens with time: expected-next-use is the fading form.
#include "policy/eviction_history.h"
#include "policy/eviction_registry.h"

namespace prophet {
namespace {

struct FewerUses {
  static constexpr bool kShielded = false;  // counts remember
  bool operator()(const UseHistory& a, const UseHistory& b, std::int64_t) const {
    return a.uses != b.uses ? a.uses < b.uses : a.last < b.last;
  }
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_lfu(const Geometry& geometry) {
  return std::make_unique<HistoryPolicy<FewerUses>>(geometry, "lfu");
}

}  // namespace prophet
