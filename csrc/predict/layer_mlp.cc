#include "predict/layer_mlp.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "predict/online_predictor.h"

namespace prophet {
namespace {

void require(const char* name, const std::vector<float>& numbers, std::size_t size) {
  if (numbers.size() != size) {
    throw InvalidArgument(std::string("a network per layer needs ") + std::to_string(size) +
                          " numbers of " + name + " and got " + std::to_string(numbers.size()) +
                          "; train the predictor again");
  }
  if (!std::all_of(numbers.begin(), numbers.end(), [](float v) { return std::isfinite(v); })) {
    throw InvalidArgument(std::string("a network per layer got a number in ") + name +
                          " that is not finite; train the predictor again");
  }
}

class LayerMlp final : public OnlinePredictor {
 public:
  explicit LayerMlp(std::shared_ptr<const LayerMlpWeights> weights)
      : OnlinePredictor(weights->geometry, weights->stride),
        weights_(std::move(weights)),
        h_(std::size_t(std::max(weights_->width, 0))),
        out_(experts()),
        follows_(experts()) {
    const LayerMlpWeights& w = *weights_;
    if (w.stride < 1 || w.stride >= w.geometry.layers || w.context < 0 || w.hidden < 0 ||
        w.width < 1 || w.inputs() < 1) {
      throw InvalidArgument(
          "a network per layer needs a stride below the number of layers, a width and something to "
          "read; train the predictor again");
    }
    const auto S = std::size_t(w.geometry.layers - w.stride), E = experts();
    const auto F = std::size_t(w.inputs()), D = std::size_t(w.width);
    if (!w.affinity.empty()) require("affinity", w.affinity, S * E * E);
    require("enter.weight", w.enter, S * F * D);
    require("enter.bias", w.enter_bias, S * D);
    require("leave.weight", w.leave, S * D * E);
    require("leave.bias", w.leave_bias, S * E);
    hidden_.resize(std::size_t(w.hidden));
  }

  std::string name() const override { return weights_->name; }
  std::int32_t hidden_width() const override { return weights_->hidden; }

 private:
  void forget() override { readable_ = false; }

  void learn(const Glimpse& glimpse, std::span<const Row>) override {
    readable_ = glimpse.hidden && std::all_of(glimpse.hidden, glimpse.hidden + hidden_.size(),
                                              [](float v) { return std::isfinite(v); });
    if (readable_) std::copy_n(glimpse.hidden, hidden_.size(), hidden_.begin());
  }

  // h += value * row `input` of this layer's enter.
  void add(std::int32_t layer, std::size_t input, float value) {
    const LayerMlpWeights& w = *weights_;
    const std::size_t D = h_.size();
    const float* row = w.enter.data() + (std::size_t(layer) * std::size_t(w.inputs()) + input) * D;
    for (std::size_t d = 0; d < D; ++d) h_[d] += value * row[d];
  }

  bool look_ahead(std::int32_t layer, std::int32_t horizon, std::span<float> p) override {
    const LayerMlpWeights& w = *weights_;
    if (horizon != w.stride || rows(layer).empty() || rows(layer).back().empty()) return false;
    if (w.hidden > 0 && !readable_) return false;
    const std::size_t D = h_.size(), E = experts();
    std::copy_n(w.enter_bias.data() + std::size_t(layer) * D, D, h_.begin());
    std::size_t input = 0;
    for (std::int32_t back = 0; back < w.context; ++back, input += E) {
      if (back > layer || rows(layer - back).empty()) continue;
      for (std::int32_t i : rows(layer - back).back()) add(layer, input + std::size_t(i), 1);
    }
    if (!w.affinity.empty()) {
      const Row& chosen = rows(layer).back();
      std::fill(follows_.begin(), follows_.end(), 0.0f);
      for (std::int32_t i : chosen) {
        const float* to = w.affinity.data() + (std::size_t(layer) * E + std::size_t(i)) * E;
        for (std::size_t e = 0; e < E; ++e) follows_[e] += to[e] / float(chosen.size());
      }
      for (std::size_t e = 0; e < E; ++e) add(layer, input + e, follows_[e]);
      input += E;
    }
    for (std::size_t i = 0; i < hidden_.size(); ++i) add(layer, input + i, hidden_[i]);

    std::copy_n(w.leave_bias.data() + std::size_t(layer) * E, E, out_.begin());
    for (std::size_t d = 0; d < D; ++d) {
      if (!(h_[d] > 0)) continue;
      const float* row = w.leave.data() + (std::size_t(layer) * D + d) * E;
      for (std::size_t e = 0; e < E; ++e) out_[e] += h_[d] * row[e];
    }
    for (std::size_t e = 0; e < E; ++e) {
      const float one = 1 / (1 + std::exp(-out_[e]));
      p[e] = std::isfinite(one) ? one : 0;  // a hidden state of huge numbers
    }
    return true;
  }

  const std::shared_ptr<const LayerMlpWeights> weights_;
  std::vector<float> hidden_, h_, out_, follows_;
  bool readable_ = false;
};

}  // namespace

std::unique_ptr<Predictor> make_layer_mlp(std::shared_ptr<const LayerMlpWeights> weights) {
  return std::make_unique<LayerMlp>(std::move(weights));
}

}  // namespace prophet
