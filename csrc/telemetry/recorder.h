// What happened? A closed list of events; every counter is a sum over them.
//
// Outcomes of bytes: each byte that moved ends in exactly one of demand, prefetch_used,
// prefetch_late, prefetch_wasted, cancelled, or is still unused in a slot (prefetch_unused):
//
//   bytes_moved = demand + prefetch_used + prefetch_late + prefetch_wasted + cancelled
//                 + prefetch_unused                            once nothing is in flight
//
// Outcomes of a request by the router: hit (resident), in flight ("late"), miss. They are told
// apart because only the first costs nothing.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/types.h"

namespace prophet {

enum class EventKind : std::uint8_t {
  layer_step,       // one MoE layer served; span
  wave,             // a part of a layer step that fits in the slots; instant
  hit,              // asked for and resident; bytes = expert
  in_flight,        // asked for and on its way; bytes = expert
  miss,             // asked for and absent; bytes = expert
  stall,            // the layer waited for bytes; span
  compute,          // expert arithmetic; span
  read_demand,      // a transfer of demand class, first chunk asked to last landed; span, bytes
  read_prefetch,    // the same, of prefetch class
  prefetch_used,    // first use of an expert that a prefetch brought in time; bytes
  prefetch_late,    // a prefetch that the router overtook; bytes of the whole transfer
  prefetch_wasted,  // evicted before any use; bytes
  cancelled,        // withdrawn or failed transfer; bytes that had moved
  failed,           // a transfer ended in a ReadError; instant
  evicted,          // a resident expert gave up its slot; instant
  evicted_unused,   // the same, and a prefetch had brought it for nothing; instant
};
constexpr int kEventKinds = static_cast<int>(EventKind::evicted_unused) + 1;
std::string_view name_of(EventKind kind);

struct Event {
  Nanos begin = 0, end = 0;  // equal for an instant
  EventKind kind = EventKind::layer_step;
  ExpertKey key;  // expert -1: concerns the whole layer
  std::uint64_t bytes = 0;
};

struct Totals {
  std::uint64_t count = 0;
  std::uint64_t bytes = 0;
  Nanos time = 0;
};

// Is told of every event as it is recorded, under the lock of the recorder's owner: it must not
// call back, and must outlive the recorder.
class EventWatcher {
 public:
  virtual ~EventWatcher() = default;
  virtual void happened(const Event& event) = 0;
};

// Not thread-safe: its owner (the engine) holds the lock.
class Recorder {
 public:
  // `timeline_capacity` events are kept, the first ones; 0 keeps none. `watcher` may be null.
  explicit Recorder(std::size_t timeline_capacity = 0, EventWatcher* watcher = nullptr);

  void record(const Event& event);
  const Totals& totals(EventKind kind) const { return totals_[static_cast<int>(kind)]; }
  const std::vector<Event>& timeline() const { return timeline_; }
  std::uint64_t timeline_dropped() const { return dropped_; }

 private:
  std::array<Totals, kEventKinds> totals_{};
  std::vector<Event> timeline_;
  std::size_t capacity_;
  EventWatcher* watcher_;
  std::uint64_t dropped_ = 0;
};

}  // namespace prophet
