// Least recently used: the victim is the evictable expert whose last use (or arrival, when it was
// not used yet) is longest ago.
//
// One circular list per layer, from cold to hot, threaded through flat arrays: a use is one
// unlink and one link at the hot end. A stamp of the last touch orders experts of different lists:
// where any layer's expert may go, the lists' first evictable experts are compared by stamp.
//
// "lru-foreseen": a forecast that names an expert is a touch as well, so that what is expected soon
// is not let go for what is expected too. Rivals that prefetch and evict by LRU do this.
#include <cstddef>
#include <cstdint>
#include <limits>

#include "policy/eviction_registry.h"

namespace prophet {
namespace {

constexpr std::int32_t kUnlinked = -1;

class Lru final : public EvictionPolicy {
 public:
  Lru(const Geometry& geometry, bool foreseen)
      : geometry_(geometry),
        foreseen_(foreseen),
        nodes_(std::size_t(geometry.total()) + geometry.layers) {
    for (std::int32_t layer = 0; layer < geometry.layers; ++layer) {
      const std::int32_t end = end_of(layer);
      nodes_[end].colder = nodes_[end].hotter = end;
    }
  }

  std::string name() const override { return foreseen_ ? "lru-foreseen" : "lru"; }
  bool shielded() const override { return true; }

  void arrived(ExpertKey key) override { touch(key); }

  void used(ExpertKey key) override {
    if (nodes_[geometry_.index(key)].hotter != kUnlinked) touch(key);
  }

  void left(ExpertKey key) override { unlink(geometry_.index(key)); }

  void forecast(std::span<const Forecast> forecasts) override {
    if (!foreseen_) return;
    for (const Forecast& one : forecasts) {
      if (geometry_.contains(one.key)) used(one.key);
    }
  }

  std::optional<ExpertKey> victim(const CacheView& view, ExpertKey) const override {
    const std::optional<std::int32_t> only = view.layer();
    const std::int32_t first = only.value_or(0);
    const std::int32_t last = only.value_or(geometry_.layers - 1);
    std::int64_t oldest = std::numeric_limits<std::int64_t>::max();
    std::optional<ExpertKey> found;
    for (std::int32_t layer = first; layer <= last; ++layer) {
      const std::int32_t end = end_of(layer);
      for (std::int32_t at = nodes_[end].hotter; at != end; at = nodes_[at].hotter) {
        if (nodes_[at].stamp >= oldest) break;
        if (!view.evictable(geometry_.key(at))) continue;
        oldest = nodes_[at].stamp;
        found = geometry_.key(at);
        break;
      }
    }
    return found;
  }

 private:
  struct Node {
    std::int32_t colder = kUnlinked;
    std::int32_t hotter = kUnlinked;
    std::int64_t stamp = 0;
  };

  // The list's own node: `hotter` is its coldest expert, `colder` its hottest.
  std::int32_t end_of(std::int32_t layer) const { return geometry_.total() + layer; }

  void unlink(std::int32_t at) {
    Node& node = nodes_[at];
    if (node.hotter == kUnlinked) return;
    nodes_[node.colder].hotter = node.hotter;
    nodes_[node.hotter].colder = node.colder;
    node.colder = node.hotter = kUnlinked;
  }

  void touch(ExpertKey key) {
    const std::int32_t at = geometry_.index(key);
    const std::int32_t end = end_of(key.layer);
    unlink(at);
    nodes_[at] = {nodes_[end].colder, end, ++clock_};
    nodes_[nodes_[end].colder].hotter = at;
    nodes_[end].colder = at;
  }

  const Geometry geometry_;
  const bool foreseen_;
  std::vector<Node> nodes_;
  std::int64_t clock_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_lru(const Geometry& geometry) {
  return std::make_unique<Lru>(geometry, false);
}

std::unique_ptr<EvictionPolicy> make_lru_foreseen(const Geometry& geometry) {
  return std::make_unique<Lru>(geometry, true);
}

}  // namespace prophet
