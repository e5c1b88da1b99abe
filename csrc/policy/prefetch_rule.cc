#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "policy/prefetch_policy.h"

namespace prophet {
namespace {

class ByRule final : public PrefetchPolicy {
 public:
  explicit ByRule(const PrefetchRule& rule) : rule_(rule) {}

  void plan(const Moment& moment, std::vector<Prefetch>& wanted) override {
    wanted.clear();
    candidates_.clear();
    for (const Forecast& forecast : moment.forecasts) {
      if (forecast.horizon < rule_.first || forecast.horizon > rule_.last) continue;
      if (!(forecast.p >= std::min(rule_.least, rule_.staging))) continue;  // nor NaN
      candidates_.push_back({forecast, rank(forecast), forecast.p >= rule_.least});
    }
    keep_likeliest();
    std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
      if (a.fast != b.fast) return a.fast;
      if (a.rank != b.rank) return a.rank > b.rank;
      return a.of.key < b.of.key;
    });
    Lane fast{Reach::fast, moment.steps_per_expert},
        staging{Reach::staging, moment.steps_per_staged};
    for (const Candidate& candidate : candidates_) {
      Lane& lane = candidate.fast ? fast : staging;
      const double until = candidate.of.horizon * rule_.fill;
      if (lane.used && lane.time + lane.steps > until) continue;
      lane.time += lane.steps;
      lane.used = true;
      wanted.push_back(
          {candidate.of.key, candidate.of.p, moment.tick + candidate.of.horizon, lane.reach});
    }
  }

 private:
  struct Candidate {
    Forecast of;
    double rank;
    bool fast;
  };
  struct Lane {
    Reach reach;
    double steps;     // per expert
    double time = 0;  // layer steps that the plan so far takes
    bool used = false;
  };

  double rank(const Forecast& forecast) const {
    switch (rule_.order) {
      case PrefetchRule::Order::deadline:
        return double(forecast.p) - 2.0 * forecast.horizon;  // p <= 1: the layer decides
      case PrefetchRule::Order::proximity:
        return double(forecast.p) / forecast.horizon;
      case PrefetchRule::Order::confidence:
        break;
    }
    return double(forecast.p) - double(rule_.discount) * forecast.horizon;
  }

  // The `per_layer` likeliest of each layer.
  void keep_likeliest() {
    if (candidates_.size() <= std::size_t(rule_.per_layer)) return;
    std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
      if (a.of.key.layer != b.of.key.layer) return a.of.key.layer < b.of.key.layer;
      if (a.of.p != b.of.p) return a.of.p > b.of.p;
      return a.of.key < b.of.key;
    });
    std::int32_t layer = -1, seen = 0;
    std::erase_if(candidates_, [&](const Candidate& candidate) {
      seen = candidate.of.key.layer == layer ? seen + 1 : 1;
      layer = candidate.of.key.layer;
      return seen > rule_.per_layer;
    });
  }

  const PrefetchRule rule_;
  std::vector<Candidate> candidates_;
};

}  // namespace

std::unique_ptr<PrefetchPolicy> make_prefetch_policy(const PrefetchRule& rule) {
  if (!(rule.least >= 0 && rule.least <= 1) || !(rule.staging >= 0 && rule.staging <= 1) ||
      !(rule.discount >= 0) || rule.first < 1 || rule.last < 0 ||
      (rule.last > 0 && rule.last < rule.first) || rule.per_layer < 1 || !(rule.fill > 0)) {
    throw InvalidArgument(
        "a rule of prefetching needs a probability of 0 to 1, layers from 1 ahead to a last that "
        "is "
        "not before the first (or 0: none), at least one expert per layer and a fill above 0");
  }
  return std::make_unique<ByRule>(rule);
}

}  // namespace prophet
