#include "predict/stream_predictor.h"

#include <algorithm>
#include <utility>

namespace prophet {

StreamPredictor::StreamPredictor(Make make, std::int32_t experts_per_layer)
    : make_(std::move(make)), experts_(std::size_t(experts_per_layer)), first_(make_()) {}

void StreamPredictor::reset() {
  first_->reset();
  known_.clear();
  order_.clear();
  named_ = false;
  layer_ = -1;
}

// Whoever has no row in the step before has none in its pass.
void StreamPredictor::begin_pass() {
  for (auto it = known_.begin(); it != known_.end();) {
    const bool present = std::find(order_.begin(), order_.end(), it->first) != order_.end();
    it = present ? std::next(it) : known_.erase(it);
  }
}

void StreamPredictor::divide(const std::int64_t* streams, std::int32_t tokens, const float* hidden,
                             std::int32_t hidden_rows) {
  order_.clear();
  for (auto& [id, stream] : known_) {
    stream.rows = 0;
    stream.experts.clear();
    stream.ids.clear();
    stream.weights.clear();
  }
  for (std::int32_t row = 0; row < tokens; ++row) {
    Stream& stream = known_[streams[row]];
    if (!stream.predictor) stream.predictor = make_();
    if (stream.rows++ == 0) order_.push_back(streams[row]);
    stream.hidden = row == tokens - 1 ? hidden : nullptr;
  }
  if (!hidden || hidden_rows != std::ssize(order_)) return;
  for (std::int64_t id : order_) {
    known_[id].hidden = hidden;
    hidden += hidden_width();
  }
}

bool StreamPredictor::approach(const Approach& approach) {
  named_ = approach.streams != nullptr;
  if (!named_) return first_->approach(approach);
  divide(approach.streams, approach.tokens, approach.entering, 1);
  for (std::int32_t row = 0; approach.ids && row < approach.tokens; ++row) {
    known_[approach.streams[row]].ids.push_back(approach.ids[row]);
  }
  bool any = false;
  for (std::int64_t id : order_) {
    Stream& stream = known_[id];
    const bool news = stream.predictor->approach(
        {approach.layer, stream.rows, approach.ids ? stream.ids.data() : nullptr, stream.hidden});
    stream.ready = stream.ready || news;
    any = any || news;
  }
  return any;
}

void StreamPredictor::observe(const Glimpse& glimpse) {
  named_ = glimpse.streams != nullptr;
  if (!named_) {
    order_.clear();
    first_->observe(glimpse);
    return;
  }
  divide(glimpse.streams, glimpse.tokens, glimpse.hidden, glimpse.hidden_rows);
  const std::size_t k = std::size_t(glimpse.top_k);
  for (std::int32_t row = 0; row < glimpse.tokens; ++row) {
    Stream& stream = known_[glimpse.streams[row]];
    const std::int32_t* experts = glimpse.experts + std::size_t(row) * k;
    stream.experts.insert(stream.experts.end(), experts, experts + k);
    if (glimpse.weights) {
      const float* weights = glimpse.weights + std::size_t(row) * k;
      stream.weights.insert(stream.weights.end(), weights, weights + k);
    }
  }
  if (glimpse.layer <= layer_) begin_pass();
  layer_ = glimpse.layer;
  for (std::int64_t id : order_) {
    Stream& stream = known_[id];
    stream.ready = true;
    stream.predictor->observe({glimpse.layer, stream.rows, glimpse.top_k, stream.experts.data(),
                               glimpse.weights ? stream.weights.data() : nullptr, stream.hidden});
  }
}

bool StreamPredictor::next_use(std::int32_t layer, std::span<float> gaps) {
  if (!named_) return first_->next_use(layer, gaps);
  if (order_.size() == 1) return known_[order_[0]].predictor->next_use(layer, gaps);
  none_.assign(experts_, 1);
  one_.resize(experts_);
  for (std::int64_t id : order_) {
    if (!known_[id].predictor->next_use(layer, one_)) return false;
    for (std::size_t e = 0; e < experts_; ++e) none_[e] *= 1 - 1 / std::max(one_[e], 1.0f);
  }
  for (std::size_t e = 0; e < experts_; ++e) {
    // So improbable that float cannot tell it from never: as late as the latest it can say.
    gaps[e] = none_[e] < 1 ? 1 / (1 - none_[e]) : one_[e];
  }
  return true;
}

void StreamPredictor::forecast(std::int32_t layer, std::vector<Forecast>& out) {
  if (!named_) return first_->forecast(layer, out);
  found_.clear();
  for (std::int64_t id : order_) {
    const Stream& stream = known_[id];
    if (stream.ready) stream.predictor->forecast(layer, order_.size() == 1 ? out : found_);
  }
  auto before = [](const Forecast& a, const Forecast& b) {
    return a.horizon != b.horizon ? a.horizon < b.horizon : a.key < b.key;
  };
  std::stable_sort(found_.begin(), found_.end(), before);
  for (std::size_t i = 0; i < found_.size();) {
    Forecast all = found_[i];
    float none = 1;
    for (; i < found_.size() && !before(all, found_[i]); ++i) none *= 1 - found_[i].p;
    all.p = 1 - none;
    out.push_back(all);
  }
}

}  // namespace prophet
