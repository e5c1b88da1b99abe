#include "transfer/reconcile.h"

#include <algorithm>

namespace prophet {
namespace {

bool contains(std::span<const ExpertKey> keys, ExpertKey key) {
  return std::find(keys.begin(), keys.end(), key) != keys.end();
}

}  // namespace

Reconciled reconcile(std::span<const Prefetch> wanted, std::span<const ExpertKey> moving,
                     const std::function<Residency(ExpertKey)>& state) {
  Reconciled out;
  // Linear: a plan holds few experts, and few are moving.
  for (ExpertKey key : moving) {
    const bool wished = std::any_of(wanted.begin(), wanted.end(),
                                    [&](const Prefetch& wish) { return wish.key == key; });
    (wished ? out.resume : out.cancel).push_back(key);
  }
  for (const Prefetch& wish : wanted) {
    const bool twice = std::any_of(out.start.begin(), out.start.end(),
                                   [&](const Prefetch& other) { return other.key == wish.key; });
    if (!twice && !contains(moving, wish.key) && state(wish.key) == Residency::absent) {
      out.start.push_back(wish);
    }
  }
  return out;
}

}  // namespace prophet
