// How long do experts stay? Between the arrival of one and its eviction: turns of its layer, and
// time; and after it left: how soon it was brought again.
//
// A turn is one step of the expert's layer. Counted between two moments are the steps that began
// after the first and not after the second: an expert that came for a step and left before the
// next one of its layer stayed 0 turns.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core/types.h"
#include "sim/histogram.h"
#include "telemetry/recorder.h"

namespace prophet {

struct Stays {
  static constexpr std::array<std::int64_t, 3> kSoon = {1, 4, 16};  // turns

  Histogram turns;  // one entry per eviction
  Histogram time;   // the same
  // Evictions by turns stayed: 0 and 1, 2 and 3, 4 to 7, ... ; as long as the longest stay needs.
  std::vector<std::uint64_t> by_power;
  // Of those that left, how many were brought again within kSoon turns; never above turns.count().
  std::array<std::uint64_t, 3> back{};
};

class Residence final : public EventWatcher {
 public:
  explicit Residence(const Geometry& geometry);

  void happened(const Event& event) override;
  // All experts are gone at once, by no eviction: what they had stayed is not counted.
  void forget();
  const Stays& stays() const { return stays_; }

 private:
  enum class State : std::uint8_t { unknown, here, gone };
  struct Place {
    Nanos since = 0;
    std::int64_t turn = 0;  // of its layer, then
    State state = State::unknown;
  };

  void arrived(ExpertKey key, Nanos now);
  void left(ExpertKey key, Nanos now);

  Geometry geometry_;
  std::vector<Place> places_;        // [experts]
  std::vector<std::int64_t> turns_;  // [layers]
  Stays stays_;
};

}  // namespace prophet
