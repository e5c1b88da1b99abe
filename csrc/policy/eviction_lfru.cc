// Least frequently and recently used: the victim is the evictable expert with the smallest
//
//     uses / age,    age = uses of all experts since its own last use, itself included (>= 1),
//
// that is, its count of uses, those of earlier stays included, over how long ago the last one was.
// Ties go to the lowest index. After arXiv 2608.07911, where it is the strongest simple rule.
// An expert that arrived ahead of its first use counts as used once, at its arrival.
#include <algorithm>

#include "policy/eviction_history.h"
#include "policy/eviction_registry.h"

namespace prophet {
namespace {

struct SmallerRate {
  static constexpr bool kShielded = true;
  static double uses(const UseHistory& history) {
    return static_cast<double>(std::max<std::int64_t>(history.uses, 1));
  }
  // Fractions compared by cross multiplication: exact while the products stay below 2^53.
  bool operator()(const UseHistory& a, const UseHistory& b, std::int64_t clock) const {
    const double age_a = static_cast<double>(clock - a.last + 1);
    const double age_b = static_cast<double>(clock - b.last + 1);
    return uses(a) * age_b < uses(b) * age_a;
  }
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_lfru(const Geometry& geometry) {
  return std::make_unique<HistoryPolicy<SmallerRate>>(geometry, "lfru");
}

}  // namespace prophet
