#include "predict/approach_predictor.h"

#include <limits>
#include <string>

#include "core/error.h"

namespace prophet {

ApproachPredictor::ApproachPredictor(const Geometry& geometry) : geometry_(geometry) {
  const std::int64_t total = std::int64_t{geometry.layers} * geometry.experts_per_layer;
  if (geometry.layers < 1 || geometry.experts_per_layer < 1 || geometry.top_k < 1 ||
      geometry.top_k > geometry.experts_per_layer ||
      total > std::numeric_limits<std::int32_t>::max()) {
    throw InvalidArgument("a predictor cannot serve " + std::to_string(geometry.layers) +
                          " layers of " + std::to_string(geometry.experts_per_layer) +
                          " experts with top-k " + std::to_string(geometry.top_k) +
                          "; train it again");
  }
  p_.resize(std::size_t(total));
}

void ApproachPredictor::reset() {
  source_ = -1;
  spoken_ = 0;
  forget();
}

void ApproachPredictor::require_step(std::int32_t layer, std::int32_t tokens) const {
  if (layer < 0 || layer >= geometry_.layers || tokens < 1) {
    throw InvalidArgument("the predictor was made for " + std::to_string(geometry_.layers) +
                          " layers; layer " + std::to_string(layer) + " with " +
                          std::to_string(tokens) + " tokens is not among them");
  }
}

void ApproachPredictor::observe(const Glimpse& glimpse) {
  require_step(glimpse.layer, glimpse.tokens);
  source_ = glimpse.layer;
  spoken_ = 0;
}

bool ApproachPredictor::approach(const Approach& approach) {
  require_step(approach.layer, approach.tokens);
  next_ = approach.layer;
  source_ = (next_ + geometry_.layers - 1) % geometry_.layers;
  const std::size_t left = std::size_t(geometry_.layers - next_) * experts();
  spoken_ = look(approach, std::span<float>(p_).first(left));
  return spoken_ > 0;
}

void ApproachPredictor::require_seen(std::int32_t layer) const {
  if (layer != source_ || source_ < 0) {
    throw StateError("a predictor speaks of the layer that was observed last, which layer " +
                     std::to_string(layer) + " is not");
  }
}

bool ApproachPredictor::next_use(std::int32_t layer, std::span<float>) {
  require_seen(layer);
  return false;
}

void ApproachPredictor::forecast(std::int32_t layer, std::vector<Forecast>& out) {
  require_seen(layer);
  for (std::int32_t i = 0; i < spoken_; ++i) {
    for (std::size_t e = 0; e < experts(); ++e) {
      const float p = p_[std::size_t(i) * experts() + e];
      if (p >= kLeastForecast) out.push_back({{next_ + i, std::int32_t(e)}, p, i + 1});
    }
  }
}

}  // namespace prophet
