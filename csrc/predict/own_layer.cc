#include "predict/own_layer.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace prophet {
namespace {

constexpr std::int32_t kRowsThatMatter = 1024;
constexpr float kLogShift = 0.004f;

}  // namespace

OwnLayer::OwnLayer(const Geometry& geometry, std::vector<float> decays)
    : geometry_(geometry),
      decays_(std::move(decays)),
      lanes_(pad_to_lanes(std::size_t(geometry.experts_per_layer))) {
  more_.resize(2 * lanes_);
  scratch_.resize((decays_.size() + 2) * kPredictorLanes);
  reset();
}

void OwnLayer::reset() {
  const std::size_t layers = std::size_t(geometry_.layers);
  averages_.assign(layers * decays_.size() * lanes_,
                   float(geometry_.top_k) / float(geometry_.experts_per_layer));
  newest_.assign(layers, {});
  before_.assign(layers, {});
}

void OwnLayer::read(const Glimpse& glimpse, std::int32_t token, Row& row) const {
  row.experts.clear();
  row.gates.clear();
  const std::size_t first = std::size_t(token) * std::size_t(glimpse.top_k);
  bool usable = glimpse.weights != nullptr;
  float sum = 0;
  for (std::int32_t k = 0; k < glimpse.top_k; ++k) {
    const std::int32_t id = glimpse.experts[first + std::size_t(k)];
    if (id < 0 || id >= geometry_.experts_per_layer ||
        std::find(row.experts.begin(), row.experts.end(), id) != row.experts.end()) {
      continue;
    }
    const float weight = glimpse.weights ? glimpse.weights[first + std::size_t(k)] : 0;
    row.experts.push_back(id);
    row.gates.push_back(weight);
    usable = usable && weight >= 0;
    sum += weight;
  }
  const float scale = float(geometry_.top_k) / sum;
  usable = usable && std::isfinite(sum) && std::isfinite(scale);
  for (float& gate : row.gates) gate = usable ? scale * gate : 1.0f;
}

void OwnLayer::observe(const Glimpse& glimpse) {
  const std::size_t layer = std::size_t(glimpse.layer), D = decays_.size();
  for (std::int32_t token = std::max(0, glimpse.tokens - kRowsThatMatter); token < glimpse.tokens;
       ++token) {
    Row& row = before_[layer];  // the oldest makes room
    read(glimpse, token, row);
    std::swap(row, newest_[layer]);
    for (std::size_t d = 0; d < D; ++d) {
      float* average = averages_.data() + (layer * D + d) * lanes_;
      predictor_kernels().fade(decays_[d], average, lanes_);
      for (std::int32_t i : newest_[layer].experts) average[i] += 1 - decays_[d];
    }
  }
}

void OwnLayer::describe(std::int32_t layer, Heads& call) {
  const std::size_t l = std::size_t(layer), D = decays_.size();
  std::fill(more_.begin(), more_.end(), 0.0f);
  const Row& newest = newest_[l];
  for (std::size_t k = 0; k < newest.experts.size(); ++k) {
    more_[std::size_t(newest.experts[k])] = newest.gates[k];
  }
  for (std::int32_t i : before_[l].experts) more_[lanes_ + std::size_t(i)] = 1;
  call.averages_count = D;
  call.more_count = D > 0 ? 2 : 0;
  call.averages = averages_.data() + l * D * lanes_;
  call.shift = kLogShift;
  call.more = more_.data();
  call.scratch = scratch_.data();
}

}  // namespace prophet
