// What LFU and LFRU remember: for each expert how often it was used, and when last. Counts outlive
// an eviction: they describe the routing, not the stay.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "policy/eviction_policy.h"

namespace prophet {

struct UseHistory {
  std::int64_t uses = 0;
  std::int64_t last = 0;  // clock of the last use or arrival; the clock counts uses
  bool present = false;
};

// A policy that evicts the expert of least worth, where worth is a function of its history.
// `Worse(a, b, clock)` says whether a is worth strictly less than b; equals go by index.
// `Worse::kShielded` is EvictionPolicy::shielded.
template <typename Worse>
class HistoryPolicy final : public EvictionPolicy {
 public:
  HistoryPolicy(const Geometry& geometry, std::string name)
      : geometry_(geometry), name_(std::move(name)), history_(std::size_t(geometry.total())) {}

  std::string name() const override { return name_; }
  bool shielded() const override { return Worse::kShielded; }

  void arrived(ExpertKey key) override {
    UseHistory& history = history_[geometry_.index(key)];
    history.present = true;
    history.last = clock_;
  }

  void used(ExpertKey key) override {
    UseHistory& history = history_[geometry_.index(key)];
    ++history.uses;
    history.last = ++clock_;
  }

  void left(ExpertKey key) override { history_[geometry_.index(key)].present = false; }

  std::optional<ExpertKey> victim(const CacheView& view, ExpertKey) const override {
    const std::optional<std::int32_t> only = view.layer();
    const std::int32_t first = only ? *only * geometry_.experts_per_layer : 0;
    const std::int32_t last = only ? first + geometry_.experts_per_layer : geometry_.total();
    const UseHistory* worst = nullptr;
    for (std::int32_t at = first; at < last; ++at) {
      const UseHistory& history = history_[at];
      if (!history.present || (worst && !Worse{}(history, *worst, clock_))) continue;
      if (view.evictable(geometry_.key(at))) worst = &history;
    }
    if (!worst) return std::nullopt;
    return geometry_.key(static_cast<std::int32_t>(worst - history_.data()));
  }

 private:
  const Geometry geometry_;
  const std::string name_;
  std::vector<UseHistory> history_;
  std::int64_t clock_ = 0;
};

}  // namespace prophet
