#include "predict/layer_mlp.h"

#include <algorithm>
#include <cmath>

#include "predict/online_predictor.h"
#include "predict/pre_attention.h"

namespace prophet {
namespace {

class LayerMlp final : public OnlinePredictor {
 public:
  explicit LayerMlp(std::shared_ptr<const LayerMlpWeights> weights)
      : OnlinePredictor(weights->geometry, weights->stride),
        network_(std::move(weights)),
        hidden_(std::size_t(network_.weights().hidden)),
        follows_(experts()) {}

  std::string name() const override { return network_.weights().name; }
  std::int32_t hidden_width() const override { return network_.weights().hidden; }

 private:
  void forget() override { readable_ = false; }

  void learn(const Glimpse& glimpse, std::span<const Row>) override {
    readable_ = glimpse.hidden && std::all_of(glimpse.hidden, glimpse.hidden + hidden_.size(),
                                              [](float v) { return std::isfinite(v); });
    if (readable_) std::copy_n(glimpse.hidden, hidden_.size(), hidden_.begin());
  }

  bool look_ahead(std::int32_t layer, std::int32_t horizon, std::span<float> p) override {
    const LayerMlpWeights& w = network_.weights();
    if (horizon != w.stride || rows(layer).empty() || rows(layer).back().empty()) return false;
    if (w.hidden > 0 && !readable_) return false;
    const std::size_t E = experts();
    network_.begin(layer);
    std::size_t input = 0;
    for (std::int32_t back = 0; back < w.context; ++back, input += E) {
      if (back > layer || rows(layer - back).empty()) continue;
      for (std::int32_t i : rows(layer - back).back()) network_.add(input + std::size_t(i), 1);
    }
    if (!w.affinity.empty()) {
      const Row& chosen = rows(layer).back();
      std::fill(follows_.begin(), follows_.end(), 0.0f);
      for (std::int32_t i : chosen) {
        const float* to = w.affinity.data() + (std::size_t(layer) * E + std::size_t(i)) * E;
        for (std::size_t e = 0; e < E; ++e) follows_[e] += to[e] / float(chosen.size());
      }
      for (std::size_t e = 0; e < E; ++e) network_.add(input + e, follows_[e]);
      input += E;
    }
    for (std::size_t i = 0; i < hidden_.size(); ++i) network_.add(input + i, hidden_[i]);
    network_.finish(p);
    return true;
  }

  LayerMlpNetwork network_;
  std::vector<float> hidden_, follows_;
  bool readable_ = false;
};

}  // namespace

std::unique_ptr<Predictor> make_layer_mlp(std::shared_ptr<const LayerMlpWeights> weights) {
  if (weights->stride == 0) return make_pre_attention(std::move(weights));
  return std::make_unique<LayerMlp>(std::move(weights));
}

}  // namespace prophet
