// Expected next use: the victim is the evictable expert whose next use is expected farthest ahead,
// counted in layer steps from the layer that is running:
//
//     distance = d + (gap - 1) * layers
//     d   = steps until the expert's layer runs again: 1 for the next layer, `layers` for the
//           layer that is running now, whose next chance is a whole token away
//     gap = min(1 / rate, kFarthest): expected turns of its own layer until it is used, >= 1
//
// `rate` is how often its layer's turns (one per token while decoding) use the expert: the mean of
// four moving averages, each  average <- decay * average + (1 - decay) * used  once per turn. Short
// memories follow a change of subject, long ones know the model. Half-lives of the decays .5 .8 .95
// .99: 1, 3, 14 and 69 turns. A rate starts at top_k / experts and outlives an eviction. An expert
// that arrived ahead of its layer's turn was brought for it: its gap is 1 until then. Ties go to
// the lowest index.
//
// A turn fades all experts of the layer, but costs the same for any number of them: averages are
// kept divided by `faded`, the layer's product of decays, and only that product is multiplied. It
// is folded back into the averages long before it leaves the range of a double.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "policy/eviction_registry.h"

namespace prophet {
namespace {

using Memory = std::array<double, 4>;
constexpr Memory kDecay = {0.5, 0.8, 0.95, 0.99};
constexpr double kFarthest = 1e4;
constexpr double kFoldBelow = 1e-100;
constexpr std::int64_t kNever = -1;

class ExpectedNextUse final : public EvictionPolicy {
 public:
  explicit ExpectedNextUse(const Geometry& geometry)
      : geometry_(geometry),
        layers_(std::size_t(geometry.layers)),
        experts_(std::size_t(geometry.total())) {
    const double chance = double(geometry.top_k) / geometry.experts_per_layer;
    for (Expert& expert : experts_) expert.average.fill(chance);
  }

  std::string name() const override { return "expected-next-use"; }

  void tick(std::int32_t layer) override {
    running_ = layer;
    Layer& at = layers_[layer];
    ++at.turn;
    for (std::size_t m = 0; m < kDecay.size(); ++m) at.faded[m] *= kDecay[m];
    if (*std::min_element(at.faded.begin(), at.faded.end()) < kFoldBelow) fold(layer);
  }

  void arrived(ExpertKey key) override {
    Expert& expert = experts_[geometry_.index(key)];
    expert.present = true;
    expert.awaited = layers_[key.layer].turn;
  }

  void used(ExpertKey key) override {
    const Layer& layer = layers_[key.layer];
    Expert& expert = experts_[geometry_.index(key)];
    expert.awaited = kNever;
    if (expert.counted == layer.turn) return;  // a later wave of the same turn
    expert.counted = layer.turn;
    for (std::size_t m = 0; m < kDecay.size(); ++m) {
      expert.average[m] += (1 - kDecay[m]) / layer.faded[m];
    }
  }

  void left(ExpertKey key) override { experts_[geometry_.index(key)].present = false; }

  std::optional<ExpertKey> victim(const CacheView& view, ExpertKey) const override {
    const std::optional<std::int32_t> only = view.layer();
    const std::int32_t first = only.value_or(0);
    const std::int32_t last = only.value_or(geometry_.layers - 1);
    double farthest = -1;
    std::optional<ExpertKey> found;
    for (std::int32_t layer = first; layer <= last; ++layer) {
      const double ahead =
          layer > running_ ? layer - running_ : layer - running_ + geometry_.layers;
      for (std::int32_t e = 0; e < geometry_.experts_per_layer; ++e) {
        const ExpertKey key{layer, e};
        const Expert& expert = experts_[geometry_.index(key)];
        if (!expert.present) continue;
        const double distance = ahead + (gap(expert, layers_[layer]) - 1) * geometry_.layers;
        if (distance > farthest && view.evictable(key)) {
          farthest = distance;
          found = key;
        }
      }
    }
    return found;
  }

 private:
  struct Layer {
    std::int64_t turn = 0;
    Memory faded = {1, 1, 1, 1};
  };
  struct Expert {
    Memory average;                 // divided by its layer's `faded`
    std::int64_t counted = kNever;  // turn of the last use
    std::int64_t awaited = kNever;  // turn of an arrival that no use has followed
    bool present = false;
  };

  static double gap(const Expert& expert, const Layer& layer) {
    if (expert.awaited == layer.turn) return 1;
    double rate = 0;
    for (std::size_t m = 0; m < kDecay.size(); ++m) rate += expert.average[m] * layer.faded[m];
    rate /= kDecay.size();
    return std::clamp(1 / rate, 1.0, kFarthest);
  }

  void fold(std::int32_t layer) {
    Memory& faded = layers_[layer].faded;
    for (std::int32_t e = 0; e < geometry_.experts_per_layer; ++e) {
      Memory& average = experts_[geometry_.index({layer, e})].average;
      for (std::size_t m = 0; m < kDecay.size(); ++m) average[m] *= faded[m];
    }
    faded.fill(1);
  }

  const Geometry geometry_;
  std::vector<Layer> layers_;
  std::vector<Expert> experts_;
  std::int32_t running_ = -1;  // before the first token every layer is ahead
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_expected_next_use(const Geometry& geometry) {
  return std::make_unique<ExpectedNextUse>(geometry);
}

}  // namespace prophet
