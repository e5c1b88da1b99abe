#include "predict/layer_mlp_network.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/error.h"

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

}  // namespace

LayerMlpNetwork::LayerMlpNetwork(std::shared_ptr<const LayerMlpWeights> weights)
    : weights_(std::move(weights)) {
  const LayerMlpWeights& w = *weights_;
  if (w.stride < 0 || w.stride >= w.geometry.layers || w.context < 0 || w.hidden < 0 ||
      w.width < 1 || w.inputs() < 1) {
    throw InvalidArgument(
        "a network per layer needs a stride below the number of layers, a width and something to "
        "read; train the predictor again");
  }
  const auto S = std::size_t(w.geometry.layers - w.stride);
  const auto E = std::size_t(w.geometry.experts_per_layer);
  const auto F = std::size_t(w.inputs()), D = std::size_t(w.width);
  if (!w.affinity.empty()) require("affinity", w.affinity, S * E * E);
  require("enter.weight", w.enter, S * F * D);
  require("enter.bias", w.enter_bias, S * D);
  require("leave.weight", w.leave, S * D * E);
  require("leave.bias", w.leave_bias, S * E);
  h_.resize(D);
}

void LayerMlpNetwork::begin(std::int32_t layer) {
  layer_ = std::size_t(layer);
  std::copy_n(weights_->enter_bias.data() + layer_ * h_.size(), h_.size(), h_.begin());
}

void LayerMlpNetwork::add(std::size_t input, float value) {
  const std::size_t D = h_.size();
  const float* row =
      weights_->enter.data() + (layer_ * std::size_t(weights_->inputs()) + input) * D;
  for (std::size_t d = 0; d < D; ++d) h_[d] += value * row[d];
}

void LayerMlpNetwork::finish(std::span<float> p) {
  const std::size_t D = h_.size(), E = p.size();
  std::copy_n(weights_->leave_bias.data() + layer_ * E, E, p.begin());
  for (std::size_t d = 0; d < D; ++d) {
    if (!(h_[d] > 0)) continue;
    const float* row = weights_->leave.data() + (layer_ * D + d) * E;
    for (std::size_t e = 0; e < E; ++e) p[e] += h_[d] * row[e];
  }
  for (float& one : p) {
    one = 1 / (1 + std::exp(-one));
    if (!std::isfinite(one)) one = 0;  // a hidden state of huge numbers
  }
}

}  // namespace prophet
