// Belady: the victim is the evictable expert whose next use is farthest in the real future. No
// policy with the same slots misses less often.
//
// The experts of a layer step are asked for together and are never victims of one another; the
// exchange argument for one request at a time holds for such sets as well, since every policy must
// hold the whole set at once. What was not revealed counts as never used again. Ties go to the
// lowest index.
#include <cstddef>
#include <cstdint>
#include <limits>

#include "policy/eviction_registry.h"

namespace prophet {
namespace {

constexpr std::int64_t kNever = std::numeric_limits<std::int64_t>::max();

class Belady final : public EvictionPolicy {
 public:
  explicit Belady(const Geometry& geometry)
      : geometry_(geometry),
        experts_(std::size_t(geometry.total())),
        farthest_(std::size_t(geometry.layers)) {}

  std::string name() const override { return "belady"; }

  void reveal(ExpertKey key, std::int64_t when) override {
    experts_[geometry_.index(key)].next = when;
    farthest_[key.layer].known = false;
  }
  void arrived(ExpertKey key) override {
    experts_[geometry_.index(key)].present = true;
    farthest_[key.layer].known = false;
  }
  void used(ExpertKey) override {}
  void left(ExpertKey key) override {
    experts_[geometry_.index(key)].present = false;
    farthest_[key.layer].known = false;
  }

  std::optional<ExpertKey> victim(const CacheView& view, ExpertKey) const override {
    const std::optional<std::int32_t> only = view.layer();
    const std::int32_t first = only.value_or(0);
    const std::int32_t last = only.value_or(geometry_.layers - 1);
    std::optional<ExpertKey> found;
    std::int64_t most = 0;
    for (std::int32_t layer = first; layer <= last; ++layer) {
      Farthest& memo = farthest_[layer];
      if (!memo.known) memo = search(layer, nullptr);
      Farthest best = memo;
      if (best.expert < 0 || (found && best.next <= most)) continue;
      if (!view.evictable({layer, best.expert})) best = search(layer, &view);
      if (best.expert < 0 || (found && best.next <= most)) continue;
      most = best.next;
      found = ExpertKey{layer, best.expert};
    }
    return found;
  }

 private:
  struct Expert {
    std::int64_t next = kNever;
    bool present = false;
  };
  struct Farthest {
    std::int32_t expert = -1;  // -1: none
    std::int64_t next = 0;
    bool known = false;
  };

  // Among those present in `layer`, or among those evictable as well when a view is given.
  Farthest search(std::int32_t layer, const CacheView* view) const {
    Farthest best{-1, 0, true};
    const Expert* experts = &experts_[geometry_.index({layer, 0})];
    for (std::int32_t e = 0; e < geometry_.experts_per_layer; ++e) {
      if (!experts[e].present || (best.expert >= 0 && experts[e].next <= best.next)) continue;
      if (view && !view->evictable({layer, e})) continue;
      best.expert = e;
      best.next = experts[e].next;
    }
    return best;
  }

  const Geometry geometry_;
  std::vector<Expert> experts_;
  mutable std::vector<Farthest> farthest_;  // per layer, until anything in it changes
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_belady(const Geometry& geometry) {
  return std::make_unique<Belady>(geometry);
}

}  // namespace prophet
