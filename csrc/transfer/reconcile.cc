#include "transfer/reconcile.h"

#include <algorithm>

namespace prophet {
namespace {

bool contains(std::span<const ExpertKey> keys, ExpertKey key) {
  return std::find(keys.begin(), keys.end(), key) != keys.end();
}

// One wish per key: the most confident.
std::vector<Prefetch> distinct(std::span<const Prefetch> wanted) {
  std::vector<Prefetch> wishes(wanted.begin(), wanted.end());
  std::stable_sort(wishes.begin(), wishes.end(), [](const Prefetch& a, const Prefetch& b) {
    return a.key != b.key ? a.key < b.key : a.confidence > b.confidence;
  });
  auto same = [](const Prefetch& a, const Prefetch& b) { return a.key == b.key; };
  wishes.erase(std::unique(wishes.begin(), wishes.end(), same), wishes.end());
  return wishes;
}

}  // namespace

Reconciled reconcile(std::span<const Prefetch> wanted, std::span<const ExpertKey> moving,
                     const std::function<Residency(ExpertKey)>& state) {
  Reconciled out;
  const std::vector<Prefetch> wishes = distinct(wanted);
  for (ExpertKey key : moving) {
    auto at = std::lower_bound(wishes.begin(), wishes.end(), key,
                               [](const Prefetch& wish, ExpertKey k) { return wish.key < k; });
    const bool wished = at != wishes.end() && at->key == key;
    (wished ? out.resume : out.cancel).push_back(key);
  }
  for (const Prefetch& wish : wishes) {
    if (!contains(moving, wish.key) && state(wish.key) == Residency::absent) {
      out.start.push_back(wish);
    }
  }
  std::sort(out.start.begin(), out.start.end(), [](const Prefetch& a, const Prefetch& b) {
    if (a.deadline != b.deadline) return a.deadline < b.deadline;
    if (a.confidence != b.confidence) return a.confidence > b.confidence;
    return a.key < b.key;
  });
  return out;
}

}  // namespace prophet
