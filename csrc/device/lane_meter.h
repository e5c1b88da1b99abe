// What the lanes have done: bytes, copies and the time with at least one copy in flight.
//
// Not thread-safe: the owner holds a lock. `now` never goes back from one call to the next.
#pragma once

#include <array>

#include "device/backend.h"

namespace prophet {

class LaneMeter {
 public:
  void started(Lane lane, Nanos now) {
    lanes_[index(lane)].busy.enter(now);
    any_.enter(now);
  }
  void landed(Lane lane, std::uint64_t bytes, Nanos now) {
    lanes_[index(lane)].bytes += bytes;
    lanes_[index(lane)].copies += 1;
    failed(lane, now);
  }
  void failed(Lane lane, Nanos now) {
    lanes_[index(lane)].busy.leave(now);
    any_.leave(now);
  }

  int in_flight(Lane lane) const { return lanes_[index(lane)].busy.inside; }
  int in_flight() const { return any_.inside; }
  LaneStats stats(Lane lane, Nanos now) const {
    const PerLane& each = lanes_[index(lane)];
    return {each.bytes, each.copies, each.busy.total(now)};
  }
  Nanos busy(Nanos now) const { return any_.total(now); }

 private:
  struct Busy {
    int inside = 0;
    Nanos since = 0, sum = 0;
    void enter(Nanos now) {
      if (inside++ == 0) since = now;
    }
    void leave(Nanos now) {
      if (--inside == 0) sum += now - since;
    }
    Nanos total(Nanos now) const { return sum + (inside > 0 ? now - since : 0); }
  };
  struct PerLane {
    std::uint64_t bytes = 0, copies = 0;
    Busy busy;
  };
  static std::size_t index(Lane lane) { return static_cast<std::size_t>(lane); }

  std::array<PerLane, kLanes> lanes_;
  Busy any_;
};

}  // namespace prophet
