#include "predict/online_predictor.h"

#include <algorithm>
#include <limits>
#include <string>

#include "core/error.h"

namespace prophet {

OnlinePredictor::OnlinePredictor(const Geometry& geometry, std::int32_t horizons)
    : geometry_(geometry), horizons_(horizons) {
  const std::int64_t total = std::int64_t{geometry.layers} * geometry.experts_per_layer;
  if (geometry.layers < 1 || geometry.experts_per_layer < 1 || geometry.top_k < 1 ||
      geometry.top_k > geometry.experts_per_layer ||
      total > std::numeric_limits<std::int32_t>::max()) {
    throw InvalidArgument("a predictor cannot serve " + std::to_string(geometry.layers) +
                          " layers of " + std::to_string(geometry.experts_per_layer) +
                          " experts with top-k " + std::to_string(geometry.top_k) +
                          "; give at least one layer and one expert, 1 <= top-k <= experts, and "
                          "fewer than 2^31 experts in all");
  }
  steps_.resize(std::size_t(geometry.layers));
  p_.resize(experts());
}

void OnlinePredictor::reset() {
  steps_.assign(steps_.size(), {});
  pass_ = 0;
  seen_ = -1;
  forget();
}

void OnlinePredictor::observe(const Glimpse& glimpse) {
  if (glimpse.layer < 0 || glimpse.layer >= geometry_.layers || glimpse.tokens < 1 ||
      glimpse.top_k < 0) {
    throw InvalidArgument("the predictor was made for " + std::to_string(geometry_.layers) +
                          " layers; layer " + std::to_string(glimpse.layer) + " with " +
                          std::to_string(glimpse.tokens) + " tokens is not among them");
  }
  if (glimpse.layer <= seen_) ++pass_;
  seen_ = glimpse.layer;
  Step& step = steps_[std::size_t(glimpse.layer)];
  step.pass = pass_;
  step.count = std::size_t(std::min(glimpse.tokens, kMostRows));
  if (step.rows.size() < step.count) step.rows.resize(step.count);
  for (std::size_t r = 0; r < step.count; ++r) {
    Row& row = step.rows[r];
    row.clear();
    const std::size_t token = std::size_t(glimpse.tokens) - step.count + r;
    for (std::int32_t k = 0; k < glimpse.top_k; ++k) {
      const std::int32_t id = glimpse.experts[token * std::size_t(glimpse.top_k) + std::size_t(k)];
      if (id >= 0 && id < geometry_.experts_per_layer &&
          std::find(row.begin(), row.end(), id) == row.end()) {
        row.push_back(id);
      }
    }
  }
  learn(glimpse, rows(glimpse.layer));
}

std::span<const OnlinePredictor::Row> OnlinePredictor::rows(std::int32_t layer) const {
  const Step& step = steps_[std::size_t(layer)];
  if (step.pass != pass_) return {};
  return {step.rows.data(), step.count};
}

void OnlinePredictor::require_seen(std::int32_t layer) const {
  if (layer != seen_) {
    throw StateError("a predictor speaks of the layer that was observed last, which layer " +
                     std::to_string(layer) + " is not");
  }
}

bool OnlinePredictor::next_use(std::int32_t layer, std::span<float> gaps) {
  require_seen(layer);
  return gaps_of(layer, gaps);
}

void OnlinePredictor::forecast(std::int32_t layer, std::vector<Forecast>& out) {
  require_seen(layer);
  for (std::int32_t f = 1; f <= horizons_ && layer + f < geometry_.layers; ++f) {
    if (!look_ahead(layer, f, p_)) continue;
    for (std::int32_t i = 0; i < geometry_.experts_per_layer; ++i) {
      const float p = p_[std::size_t(i)];
      if (p >= kLeastForecast) out.push_back({{layer + f, i}, p, f});
    }
  }
}

}  // namespace prophet
