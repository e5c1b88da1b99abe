// What policies share that weigh each expert by its newest forecast: for each, that forecast, how
// often it was used, and when it was last touched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "policy/eviction_policy.h"

namespace prophet {

struct Prospect {
  double p = 0;              // of the newest forecast of its layer; 0 when that left it out
  std::int32_t horizon = 0;  // of that forecast, layers ahead
  std::int64_t uses = 0;     // those of earlier stays included
  std::int64_t touched = 0;  // clock of the last use or arrival
  bool present = false;
};

// Evicts the expert of least `Worth{}(prospect, layer, layers)`; equals go by the last touch.
template <typename Worth>
class WorthPolicy final : public EvictionPolicy {
 public:
  WorthPolicy(const Geometry& geometry, std::string name)
      : geometry_(geometry),
        name_(std::move(name)),
        experts_(std::size_t(geometry.total())),
        told_(std::size_t(geometry.layers), 0) {}

  std::string name() const override { return name_; }

  void arrived(ExpertKey key) override {
    Prospect& expert = experts_[geometry_.index(key)];
    expert.present = true;
    expert.touched = ++clock_;
  }
  void used(ExpertKey key) override {
    Prospect& expert = experts_[geometry_.index(key)];
    ++expert.uses;
    expert.touched = ++clock_;
  }
  void left(ExpertKey key) override { experts_[geometry_.index(key)].present = false; }

  void forecast(std::span<const Forecast> forecasts) override {
    ++words_;
    for (const Forecast& one : forecasts) {
      if (!geometry_.contains(one.key)) continue;
      std::int64_t& told = told_[std::size_t(one.key.layer)];
      if (told != words_) {
        told = words_;
        for (std::int32_t e = 0; e < geometry_.experts_per_layer; ++e) {
          experts_[geometry_.index({one.key.layer, e})].p = 0;
        }
      }
      Prospect& expert = experts_[geometry_.index(one.key)];
      expert.p = one.p;
      expert.horizon = one.horizon;
    }
  }

  std::optional<ExpertKey> victim(const CacheView& view, ExpertKey) const override {
    const std::optional<std::int32_t> only = view.layer();
    const std::int32_t first = only ? *only * geometry_.experts_per_layer : 0;
    const std::int32_t last = only ? first + geometry_.experts_per_layer : geometry_.total();
    std::optional<ExpertKey> found;
    std::pair<double, std::int64_t> least;
    for (std::int32_t at = first; at < last; ++at) {
      const Prospect& expert = experts_[at];
      if (!expert.present) continue;
      const ExpertKey key = geometry_.key(at);
      const std::pair standing{Worth{}(expert, key.layer, geometry_.layers), expert.touched};
      if ((found && standing >= least) || !view.evictable(key)) continue;
      found = key;
      least = standing;
    }
    return found;
  }

 private:
  const Geometry geometry_;
  const std::string name_;
  std::vector<Prospect> experts_;
  std::vector<std::int64_t> told_;  // [layers] the last word that spoke of it
  std::int64_t words_ = 0, clock_ = 0;
};

}  // namespace prophet
