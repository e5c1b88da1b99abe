// Least-Stale (SpecMD, arXiv 2602.03921): experts that the running forward pass has not touched are
// stale. The victim is the evictable expert that is stale and was touched longest ago; where none
// is stale, the one touched longest ago. An arrival is a touch, so what was just brought is not
// stale.
//
// Staleness orders experts as the time of their last touch does, so by this rule alone it names the
// victims of LRU, as arXiv 2608.07911 found; the published gains are of its prefetching. A pass
// ends when a layer comes that is not behind the last one.
#include <cstdint>
#include <tuple>
#include <vector>

#include "policy/eviction_registry.h"

namespace prophet {
namespace {

class LeastStale final : public EvictionPolicy {
 public:
  explicit LeastStale(const Geometry& geometry)
      : geometry_(geometry), experts_(std::size_t(geometry.total())) {}

  std::string name() const override { return "least-stale"; }
  bool shielded() const override { return true; }

  void tick(std::int32_t layer) override {
    if (layer <= running_) ++pass_;
    running_ = layer;
  }
  void arrived(ExpertKey key) override {
    experts_[geometry_.index(key)].present = true;
    touch(key);
  }
  void used(ExpertKey key) override {
    if (experts_[geometry_.index(key)].present) touch(key);
  }
  void left(ExpertKey key) override { experts_[geometry_.index(key)].present = false; }

  std::optional<ExpertKey> victim(const CacheView& view, ExpertKey) const override {
    const std::optional<std::int32_t> only = view.layer();
    const std::int32_t first = only ? *only * geometry_.experts_per_layer : 0;
    const std::int32_t last = only ? first + geometry_.experts_per_layer : geometry_.total();
    std::optional<ExpertKey> found;
    std::tuple<bool, std::int64_t> least;
    for (std::int32_t at = first; at < last; ++at) {
      const Expert& expert = experts_[at];
      if (!expert.present) continue;
      const std::tuple standing{expert.pass == pass_, expert.touched};
      if ((found && standing >= least) || !view.evictable(geometry_.key(at))) continue;
      found = geometry_.key(at);
      least = standing;
    }
    return found;
  }

 private:
  struct Expert {
    std::int64_t pass = 0, touched = 0;  // of the last touch
    bool present = false;
  };

  void touch(ExpertKey key) {
    Expert& expert = experts_[geometry_.index(key)];
    expert.pass = pass_;
    expert.touched = ++clock_;
  }

  const Geometry geometry_;
  std::vector<Expert> experts_;
  std::int32_t running_ = -1;
  std::int64_t pass_ = 0, clock_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_least_stale(const Geometry& geometry) {
  return std::make_unique<LeastStale>(geometry);
}

}  // namespace prophet
