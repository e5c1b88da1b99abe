// Expected next use: the victim is the evictable expert whose next use is expected farthest ahead,
// counted in layer steps from the layer that is running:
//
//     distance = ahead + (gap - 1) * layers
//     ahead = steps until the expert's layer runs again: 1 for the next layer, `layers` for the
//             layer that is running now, whose next chance is a whole token away
//     gap   = E[min(n, 8)], n = its layer's turns until it is used, each turn using it with
//             probability `rate`;  with q = 1 - rate:  1 + q + ... + q^7 = (1+q)(1+q^2)(1+q^4)
//
// Truncated, because what lies beyond about one turnover of the cache does not change who leaves
// first. A turn of a layer is one tick: one token while decoding, one forward pass in prefill.
//
//     rate = 0.2 * quick + 0.8 * slow,    average <- decay * average + (1 - decay) * used
//
// once per turn, decay 0.4 (half-life 0.8 turns) for quick and 0.96 (17 turns) for slow: the last
// token's experts often return at once, the slow average knows the subject. Averages start at
// top_k / experts and outlive an eviction. Ties go to the lowest index. A turn that streams counts
// as 1 - (1 - share)^4 of a use: would a few tokens drawn from it have used the expert? What a long
// prompt has used once is no sign that the next token will.
//
// A forecast that an expert is needed in the coming turn of its layer with probability p makes its
// gap 1 + (1 - p) * gap until that turn is over; an expert that arrived ahead of its layer's turn
// without a forecast was brought for it: p = 1. A wish may take a slot only if its own distance, so
// computed, is below the victim's.
//
// A predictor knows more: where one has told a layer's gaps (EvictionPolicy::expects), they take
// the place of the formula above, from the turn they were told in to the end of the next one.
//
// Averages fade lazily: they are kept divided by `faded`, their layer's product of decays, and a
// tick multiplies only that; long before it leaves the range of a double it is folded back into
// them.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "policy/eviction_registry.h"

namespace prophet {
namespace {

using Averages = std::array<double, 2>;  // quick, slow
constexpr Averages kDecay = {0.4, 0.96};
constexpr Averages kWeight = {0.2, 0.8};
constexpr double kFoldBelow = 1e-100;
constexpr std::int64_t kNever = -1;

class ExpectedNextUse final : public EvictionPolicy {
 public:
  explicit ExpectedNextUse(const Geometry& geometry)
      : geometry_(geometry),
        layers_(std::size_t(geometry.layers)),
        farthest_(std::size_t(geometry.layers)),
        experts_(std::size_t(geometry.total())) {
    const double chance = double(geometry.top_k) / geometry.experts_per_layer;
    for (Expert& expert : experts_) expert.average.fill(chance);
  }

  std::string name() const override { return "expected-next-use"; }

  void tick(std::int32_t layer) override {
    running_ = layer;
    farthest_[layer].known = false;
    Layer& at = layers_[layer];
    ++at.turn;
    for (std::size_t m = 0; m < kDecay.size(); ++m) at.faded[m] *= kDecay[m];
    if (at.faded[0] < kFoldBelow) fold(layer);
  }

  void arrived(ExpertKey key) override {
    Expert& expert = experts_[geometry_.index(key)];
    expert.present = true;
    expert.awaited = layers_[key.layer].turn;
    if (expert.foreseen != expert.awaited) expert.chance = 1;
    farthest_[key.layer].known = false;
  }

  void used(ExpertKey key) override { count(key, 1); }

  void streamed(ExpertKey key, float share) override {
    const float others = 1 - share;
    count(key, 1 - others * others * others * others);
  }

  void expects(std::int32_t layer, std::span<const float> gaps) override {
    Layer& at = layers_[layer];
    at.told = at.turn;
    farthest_[layer].known = false;
    for (std::int32_t e = 0; e < geometry_.experts_per_layer; ++e) {
      experts_[geometry_.index({layer, e})].told = gaps[e];
    }
  }

  void foreseen(ExpertKey key, float p, std::int64_t) override {
    Expert& expert = experts_[geometry_.index(key)];
    expert.foreseen = layers_[key.layer].turn;
    // More than certain would make a gap below one turn, and its expert no victim ever.
    expert.chance = p > 0 ? std::min(p, 1.0f) : 0.0f;  // no number: nothing was said
    farthest_[key.layer].known = false;
  }

  void left(ExpertKey key) override {
    experts_[geometry_.index(key)].present = false;
    farthest_[key.layer].known = false;
  }

  std::optional<ExpertKey> victim(const CacheView& view, ExpertKey) const override {
    const std::optional<std::int32_t> only = view.layer();
    const std::int32_t first = only.value_or(0);
    const std::int32_t last = only.value_or(geometry_.layers - 1);
    double most = -1;
    std::optional<ExpertKey> found;
    for (std::int32_t layer = first; layer <= last; ++layer) {
      Farthest& memo = farthest_[layer];
      if (!memo.known) memo = search(layer, nullptr);
      if (memo.expert < 0 || distance(layer, memo.gap) <= most) continue;
      Farthest best = memo;
      if (!view.evictable({layer, best.expert})) best = search(layer, &view);
      if (best.expert < 0 || distance(layer, best.gap) <= most) continue;
      most = distance(layer, best.gap);
      found = ExpertKey{layer, best.expert};
    }
    return found;
  }

  bool yields(ExpertKey victim, const Prefetch& wish) const override {
    return distance(victim.layer, gap(experts_[geometry_.index(victim)], layers_[victim.layer])) >
           distance(wish.key.layer,
                    gap(experts_[geometry_.index(wish.key)], layers_[wish.key.layer]));
  }

 private:
  struct Layer {
    std::int64_t turn = 0;
    std::int64_t told = kNever;  // turn in which a predictor last told the gaps
    Averages faded = {1, 1};
  };
  struct Expert {
    Averages average;                // divided by its layer's `faded`
    std::int64_t counted = kNever;   // turn of the last use
    std::int64_t awaited = kNever;   // turn of an arrival that no use has followed
    std::int64_t foreseen = kNever;  // turn in which its use in the next one was forecast ...
    float chance = 1;                // ... with this probability
    float told = 1;                  // gap by a predictor's word
    bool present = false;
  };
  // The expert of a layer with the largest gap.
  struct Farthest {
    std::int32_t expert = -1;  // -1: none
    double gap = 0;
    bool known = false;
  };

  void count(ExpertKey key, double use) {
    const Layer& layer = layers_[key.layer];
    Expert& expert = experts_[geometry_.index(key)];
    expert.awaited = kNever;
    farthest_[key.layer].known = false;
    if (expert.counted == layer.turn) return;  // a later wave of the same turn
    expert.counted = layer.turn;
    for (std::size_t m = 0; m < kDecay.size(); ++m) {
      expert.average[m] += (1 - kDecay[m]) * use / layer.faded[m];
    }
  }

  static double gap(const Expert& expert, const Layer& layer) {
    if (expert.awaited != layer.turn && expert.foreseen != layer.turn) return usual(expert, layer);
    return 1 + (1 - double(expert.chance)) * usual(expert, layer);
  }

  static double usual(const Expert& expert, const Layer& layer) {
    if (layer.told != kNever && layer.turn - layer.told <= 1) return expert.told;
    double rate = 0;
    for (std::size_t m = 0; m < kDecay.size(); ++m) {
      rate += kWeight[m] * layer.faded[m] * expert.average[m];
    }
    const double q = 1 - rate, q2 = q * q;
    return (1 + q) * (1 + q2) * (1 + q2 * q2);
  }

  // Among those present in `layer`, or among those evictable as well when a view is given.
  Farthest search(std::int32_t layer, const CacheView* view) const {
    Farthest best{-1, 0, true};
    const Expert* experts = &experts_[geometry_.index({layer, 0})];
    for (std::int32_t e = 0; e < geometry_.experts_per_layer; ++e) {
      if (!experts[e].present) continue;
      const double candidate = gap(experts[e], layers_[layer]);
      if (candidate <= best.gap || (view && !view->evictable({layer, e}))) continue;
      best.expert = e;
      best.gap = candidate;
    }
    return best;
  }

  double distance(std::int32_t layer, double gap) const {
    const std::int32_t ahead = layer - running_ + (layer > running_ ? 0 : geometry_.layers);
    return ahead + (gap - 1) * geometry_.layers;
  }

  void fold(std::int32_t layer) {
    Averages& faded = layers_[layer].faded;
    for (std::int32_t e = 0; e < geometry_.experts_per_layer; ++e) {
      Averages& average = experts_[geometry_.index({layer, e})].average;
      for (std::size_t m = 0; m < kDecay.size(); ++m) average[m] *= faded[m];
    }
    faded.fill(1);
  }

  const Geometry geometry_;
  std::vector<Layer> layers_;
  mutable std::vector<Farthest> farthest_;  // per layer, until anything in it changes
  std::vector<Expert> experts_;
  std::int32_t running_ = -1;  // before the first token every layer is ahead
};

}  // namespace

std::unique_ptr<EvictionPolicy> make_expected_next_use(const Geometry& geometry) {
  return std::make_unique<ExpectedNextUse>(geometry);
}

}  // namespace prophet
