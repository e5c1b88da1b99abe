#include "engine/planner.h"

#include <algorithm>

namespace prophet {
namespace {

constexpr double kTrustFade = 0.98;     // per turn of a layer: half-life 34 turns
constexpr double kTrustPrior = 4;       // forecasts' worth of trust before anything was seen
constexpr double kOutcomeFade = 0.999;  // per layer step
constexpr double kEnoughCost = 2;       // expert transfers; less than that decides nothing
constexpr std::int64_t kSilence = 512, kLongestSilence = 1 << 16;  // layer steps

}  // namespace

Planner::Planner(const Geometry& geometry, const PrefetchRule& rule, double chunk_share)
    : geometry_(geometry),
      rule_(rule),
      chunk_(std::min(1.0, chunk_share)),
      policy_(make_prefetch_policy(rule)),
      words_(std::size_t(geometry.layers)),
      trust_(std::size_t(geometry.layers)) {}

double Planner::trust(std::int32_t layer) const {
  if (!rule_.conscience) return 1;
  const Trust& t = trust_[layer];
  return std::min(1.0, (t.kept + kTrustPrior) / (t.promised + kTrustPrior));
}

void Planner::tick() {
  ++ticks_;
  benefit_ *= kOutcomeFade;
  cost_ *= kOutcomeFade;
  weigh();
}

void Planner::weigh() {
  if (!rule_.conscience) return;
  if (ticks_ < silent_until_) {
    ++held_;
    return;
  }
  if (cost_ < kEnoughCost || cost_ <= benefit_) {
    if (benefit_ > 2 * kEnoughCost && benefit_ > 2 * cost_) silence_ = 0;  // it pays again
    return;
  }
  silence_ = std::clamp(2 * silence_, kSilence, kLongestSilence);
  silent_until_ = ticks_ + silence_;
  ++held_;
  benefit_ = cost_ = 0;
}

void Planner::heard(std::int64_t tick, std::span<const Forecast> forecasts) {
  ++heard_;
  for (const Forecast& forecast : forecasts) {
    if (!geometry_.contains(forecast.key) || forecast.horizon < 1) continue;
    Word& word = words_[forecast.key.layer];
    if (word.tick > tick) continue;
    if (word.tick < tick || word.number != heard_) {
      word.tick = tick;
      word.number = heard_;
      word.forecasts.clear();
    }
    word.forecasts.push_back(forecast);
    // Trust sums what was promised: one infinite promise would never be forgotten.
    word.forecasts.back().p = std::min(forecast.p, 1.0f);
  }
}

void Planner::asked(std::int32_t layer, std::span<const std::int32_t> experts) {
  Word& word = words_[layer];
  Trust& trust = trust_[layer];
  if (word.tick >= 0) {
    trust.promised *= kTrustFade;
    trust.kept *= kTrustFade;
    for (const Forecast& forecast : word.forecasts) {
      if (!(forecast.p >= rule_.least)) continue;
      trust.promised += forecast.p;
      trust.kept += std::find(experts.begin(), experts.end(), forecast.key.expert) != experts.end();
    }
  }
  word.tick = -1;
  word.forecasts.clear();
}

void Planner::plan(const Cache& cache, const Pace& pace, std::vector<Prefetch>& wanted) {
  wanted.clear();
  if (ticks_ < silent_until_) return;
  candidates_.clear();
  for (std::int32_t layer = 0; layer < geometry_.layers; ++layer) {
    const Word& word = words_[layer];
    if (word.tick < 0) continue;
    const auto trusted = float(trust(layer));
    for (const Forecast& forecast : word.forecasts) {
      const auto ahead = std::int32_t(word.tick + forecast.horizon - ticks_);
      if (ahead < 1) continue;  // that turn is over or running
      const float p = forecast.p * trusted;
      if (!(p >= std::min(rule_.least, rule_.staging)) || ahead > rule_.last) continue;
      const Residency state = cache.state(forecast.key);
      if (state != Residency::absent && state != Residency::loading) continue;
      candidates_.push_back({forecast.key, p, ahead});
    }
  }
  Moment moment{ticks_, candidates_, PrefetchPolicy::kNever};
  if (pace.idle > 0) {
    moment.steps_per_expert = std::min(pace.expert / pace.idle, PrefetchPolicy::kNever);
  }
  if (pace.disk_idle > 0) {
    moment.steps_per_staged = std::min(pace.staged / pace.disk_idle, PrefetchPolicy::kNever);
  }
  policy_->plan(moment, wanted);
}

}  // namespace prophet
