#include "predict/joint_predictor.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace prophet {
namespace {

// Fitted on the reference model's held-out texts: what a gate reused one, two, three layers on is
// worth beside the trained forecaster.
constexpr double kBegin[JointPredictor::kHorizons][3] = {
    {0.69, 0.55, 0.0}, {0.73, 0.48, 0.0}, {0.80, 0.39, 0.0}};
constexpr double kRate = 0.05, kCautious = 1e-2;  // AdaGrad: rate / sqrt(sum of squares + cautious)
constexpr float kUnsaid = kLeastForecast / 2;     // of an expert that a forecast leaves out
constexpr float kSure = 1e-6f;

float logit(float p) { return std::log(p / (1 - p)); }

}  // namespace

JointPredictor::JointPredictor(const Geometry& geometry, std::unique_ptr<Predictor> first,
                               std::unique_ptr<Predictor> second)
    : geometry_(geometry),
      first_(std::move(first)),
      second_(std::move(second)),
      chance_(logit(std::clamp(float(geometry.top_k) / float(geometry.experts_per_layer), kSure,
                               1 - kSure))) {
  const auto same = [&](std::int32_t a, std::int32_t b) {
    if (a == 0 || b == 0 || a == b) return;
    throw InvalidArgument(first_->name() + " reads hidden states of width " + std::to_string(a) +
                          " and " + second_->name() + " of " + std::to_string(b) +
                          ": they are not of one model");
  };
  same(first_->hidden_width(), second_->hidden_width());
  same(first_->entering_width(), second_->entering_width());
  waiting_.resize(std::size_t(geometry.layers) * kHorizons);
  chosen_.resize(std::size_t(geometry.experts_per_layer));
  forget();
}

std::int32_t JointPredictor::hidden_width() const {
  return std::max(first_->hidden_width(), second_->hidden_width());
}

std::int32_t JointPredictor::entering_width() const {
  return std::max(first_->entering_width(), second_->entering_width());
}

void JointPredictor::forget() {
  for (std::int32_t f = 0; f < kHorizons; ++f) {
    std::copy_n(kBegin[f], 3, weights_[f].of);
    std::fill_n(weights_[f].squares, 3, 0.0);
  }
  for (Waiting& one : waiting_) one.open = false;
  ready_[0] = ready_[1] = false;
}

void JointPredictor::reset() {
  first_->reset();
  second_->reset();
  forget();
}

float JointPredictor::odds(float p) const {
  return logit(std::clamp(p, kSure, 1 - kSure)) - chance_;
}

void JointPredictor::observe(const Glimpse& glimpse) {
  // Refuses what cannot be before anything is learned from it.
  first_->observe(glimpse);
  second_->observe(glimpse);
  ready_[0] = ready_[1] = true;
  learn(glimpse);
}

bool JointPredictor::approach(const Approach& approach) {
  const bool news[] = {first_->approach(approach), second_->approach(approach)};
  for (int i = 0; i < 2; ++i) ready_[i] = ready_[i] || news[i];
  return news[0] || news[1];
}

// By what the newest token chose: of it the hidden state told. Of several streams by what any
// token chose, which is what is forecast of them.
void JointPredictor::learn(const Glimpse& glimpse) {
  const std::size_t experts = chosen_.size();
  std::fill(chosen_.begin(), chosen_.end(), 0);
  const std::size_t end = std::size_t(glimpse.tokens) * std::size_t(glimpse.top_k);
  bool any = false;
  for (std::size_t i = glimpse.streams ? 0 : end - std::size_t(glimpse.top_k); i < end; ++i) {
    const std::int32_t expert = glimpse.experts[i];
    if (expert < 0 || std::size_t(expert) >= experts) continue;
    chosen_[std::size_t(expert)] = 1;
    any = true;
  }
  for (std::int32_t f = 1; f <= kHorizons; ++f) {
    Waiting& told = waiting(glimpse.layer, f);
    if (!told.open) continue;
    told.open = false;
    if (!any) continue;  // the router said nothing that is known
    double slope[3] = {};
    for (std::size_t i = 0; i < experts; ++i) {
      const double error = told.p[i] - (chosen_[i] ? 1.0 : 0.0);
      slope[0] += error * told.first[i];
      slope[1] += error * told.second[i];
      slope[2] += error;
    }
    Weights& w = weights_[f - 1];
    for (int j = 0; j < 3; ++j) {
      const double mean = slope[j] / double(experts);
      w.squares[j] += mean * mean;
      w.of[j] -= kRate * mean / std::sqrt(w.squares[j] + kCautious);
    }
  }
}

bool JointPredictor::next_use(std::int32_t layer, std::span<float> gaps) {
  return first_->next_use(layer, gaps);
}

void JointPredictor::forecast(std::int32_t layer, std::vector<Forecast>& out) {
  mine_.clear();
  other_.clear();
  // Of two that have seen nothing both refuse.
  if (ready_[0] || !ready_[1]) first_->forecast(layer, mine_);
  if (ready_[1] || !ready_[0]) second_->forecast(layer, other_);
  const std::size_t experts = chosen_.size();
  const float unsaid = odds(kUnsaid);
  bool joined[kHorizons] = {};
  for (std::int32_t f = 1; f <= kHorizons && layer + f < geometry_.layers; ++f) {
    const auto of_horizon = [f](const Forecast& one) { return one.horizon == f; };
    if (std::none_of(mine_.begin(), mine_.end(), of_horizon) ||
        std::none_of(other_.begin(), other_.end(), of_horizon)) {
      continue;
    }
    joined[f - 1] = true;
    Waiting& told = waiting(layer + f, f);
    told.open = true;
    told.first.assign(experts, unsaid);
    told.second.assign(experts, unsaid);
    told.p.resize(experts);
    for (const Forecast& one : mine_) {
      if (one.horizon == f) told.first[std::size_t(one.key.expert)] = odds(one.p);
    }
    for (const Forecast& one : other_) {
      if (one.horizon == f) told.second[std::size_t(one.key.expert)] = odds(one.p);
    }
    const double* w = weights_[f - 1].of;
    for (std::size_t i = 0; i < experts; ++i) {
      const double z = w[0] * told.first[i] + w[1] * told.second[i] + w[2] + chance_;
      told.p[i] = float(1 / (1 + std::exp(-z)));
      if (told.p[i] >= kLeastForecast) {
        out.push_back({{layer + f, std::int32_t(i)}, told.p[i], f});
      }
    }
  }
  for (const Forecast& one : mine_) {
    if (one.horizon > kHorizons || !joined[one.horizon - 1]) out.push_back(one);
  }
}

}  // namespace prophet
