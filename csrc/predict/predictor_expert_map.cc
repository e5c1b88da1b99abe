// "expert-map": what FineMoE forecasts (arXiv 2502.05370), from what a runtime sees.
//
// An expert map is one token's gate probabilities in all layers. The maps of up to 1,000 past
// tokens are kept. While a token runs, its map so far is compared with the same layers of every
// kept one, by cosine; the nearest foretells the layer kAhead layers on: its likeliest experts, as
// many as it takes to reach 1 - cosine in probability, and top_k at least. A token's map takes the
// place of the most similar one once there are 1,000.
//
// The published system sees whole gate distributions; of an expert that was not chosen the
// probability is taken for zero here. It also finds a map for the first kAhead layers by the
// embedding of the text, which no router says: these layers are not foretold.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "predict/online_predictor.h"
#include "predict/predictor_registry.h"

namespace prophet {
namespace {

constexpr std::size_t kMaps = 1000;
constexpr std::int32_t kAhead = 3;

class ExpertMapSearch final : public OnlinePredictor {
 public:
  explicit ExpertMapSearch(const Geometry& geometry)
      : OnlinePredictor(geometry, kAhead), own_(std::size_t(geometry.total())), order_(experts()) {
    forget();
  }
  std::string name() const override { return "expert-map"; }

 private:
  void forget() override {
    count_ = 0;
    seen_ = geometry_.layers;
    found_ = false;
    started_ = false;
    maps_.assign(std::size_t(geometry_.total()) * kMaps, 0.0f);
    norms_.assign(std::size_t(geometry_.layers) * kMaps, 0.0f);
    product_.assign(kMaps, 0.0f);
    std::fill(own_.begin(), own_.end(), 0.0f);
  }

  float* column(std::size_t expert) { return maps_.data() + expert * kMaps; }
  float* norms(std::int32_t layer) { return norms_.data() + std::size_t(layer) * kMaps; }

  void learn(const Glimpse& glimpse, std::span<const Row> rows) override {
    if (glimpse.layer <= seen_) {  // a pass begins
      if (started_) keep();
      std::fill(own_.begin(), own_.end(), 0.0f);
      std::fill(product_.begin(), product_.end(), 0.0f);
      own_squares_ = 0;
      started_ = true;
    }
    seen_ = glimpse.layer;
    read(glimpse, rows.back());
    for (std::int32_t i : rows.back()) {
      const std::size_t expert = at(glimpse.layer) + std::size_t(i);
      const float own = own_[expert];
      own_squares_ += own * own;
      const float* theirs = column(expert);
      for (std::size_t m = 0; m < count_; ++m) product_[m] += own * theirs[m];
    }
    search(glimpse.layer);
  }

  // The last token's probabilities, divided by their sum.
  void read(const Glimpse& glimpse, const Row& chosen) {
    const std::size_t k = std::size_t(glimpse.top_k);
    const std::size_t last = (std::size_t(glimpse.tokens) - 1) * k;
    float sum = 0;
    for (std::size_t i = 0; glimpse.weights && i < k; ++i) {
      const std::int32_t id = glimpse.experts[last + i];
      const float weight = glimpse.weights[last + i];
      if (id < 0 || id >= geometry_.experts_per_layer || !(weight > 0 && weight <= 1e6f)) continue;
      own_[at(glimpse.layer) + std::size_t(id)] = weight;
    }
    for (std::int32_t i : chosen) sum += own_[at(glimpse.layer) + std::size_t(i)];
    for (std::int32_t i : chosen) {
      float& own = own_[at(glimpse.layer) + std::size_t(i)];
      own = sum > 0 ? own / sum : 1 / float(chosen.size());
    }
  }

  void search(std::int32_t layer) {
    found_ = false;
    best_ = 0;
    const float* squares = norms(layer);
    float most = 0;
    for (std::size_t m = 0; m < count_; ++m) {
      if (squares[m] <= 0) continue;
      const float cosine = product_[m] / std::sqrt(squares[m]);
      if (found_ && cosine <= most) continue;
      found_ = true;
      most = cosine;
      best_ = m;
    }
    score_ = own_squares_ > 0 ? most / std::sqrt(own_squares_) : 0;
  }

  // The token is over.
  void keep() {
    std::size_t place = count_;
    if (count_ < kMaps) {
      ++count_;
    } else {
      place = 0;
      const float* squares = norms(geometry_.layers - 1);
      float most = -1;
      for (std::size_t m = 0; m < kMaps; ++m) {
        const float cosine = squares[m] > 0 ? product_[m] / std::sqrt(squares[m]) : 0;
        if (cosine <= most) continue;
        most = cosine;
        place = m;
      }
    }
    float squares = 0;
    for (std::int32_t layer = 0; layer < geometry_.layers; ++layer) {
      for (std::size_t i = 0; i < experts(); ++i) {
        const float own = own_[at(layer) + i];
        column(at(layer) + i)[place] = own;
        squares += own * own;
      }
      norms(layer)[place] = squares;
    }
  }

  bool look_ahead(std::int32_t layer, std::int32_t horizon, std::span<float> p) override {
    if (horizon != kAhead || !found_) return false;
    const std::size_t from = at(layer + horizon);
    std::iota(order_.begin(), order_.end(), std::size_t{0});
    const auto likely = [&](std::size_t i) { return column(from + i)[best_]; };
    std::stable_sort(order_.begin(), order_.end(),
                     [&](std::size_t a, std::size_t b) { return likely(a) > likely(b); });
    std::fill(p.begin(), p.end(), 0.0f);
    const float enough = std::clamp(1 - score_, 0.0f, 1.0f);
    float sum = 0;
    for (std::size_t n = 0; n < order_.size(); ++n) {
      if (n >= std::size_t(geometry_.top_k) && sum >= enough) break;
      sum += p[order_[n]] = std::min(likely(order_[n]), 1.0f);
    }
    return true;
  }

  std::vector<float> maps_;   // [L, E, maps]
  std::vector<float> norms_;  // [L, maps] sum of squares of the layers up to this one
  std::size_t count_ = 0;     // maps kept
  std::vector<float> own_;    // [L, E] of the running token
  float own_squares_ = 0;
  std::vector<float> product_;  // [maps] with the running token, so far
  std::int32_t seen_ = 0;
  bool started_ = false, found_ = false;
  std::size_t best_ = 0;
  float score_ = 0;
  std::vector<std::size_t> order_;
};

}  // namespace

std::unique_ptr<Predictor> make_expert_map_search(const Geometry& geometry,
                                                  const PredictorInputs&) {
  return std::make_unique<ExpertMapSearch>(geometry);
}

}  // namespace prophet
