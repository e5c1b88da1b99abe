// Which read starts next, and what became of those that did: shared by every kind of lane.
//
// One first-in first-out queue per lane. Demand goes first, and a prefetch starts only when no
// demand is in flight: reads in flight share the disk. At most `depth` reads are in flight in all
// and at most kPrefetchInFlight of them prefetches, so a demand never waits for more than those.
// `after` is an entry of the queue: what follows it waits.
//
// Thread-safe. Callers of the backend and lane threads meet only here.
#pragma once

#include <array>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "device/cpu/file_read.h"
#include "device/lane_meter.h"
#include "device/ticket_book.h"

namespace prophet {

class LaneQueue {
 public:
  static constexpr int kPrefetchInFlight = 2;

  // Told of each read that has landed or failed (read.why), without the lock, by the thread that
  // ended it.
  using Bell = std::function<void(const FileRead&)>;

  explicit LaneQueue(int depth, Bell bell = {}) : depth_(depth), bell_(std::move(bell)) {}

  // For callers of the backend.
  Ticket push(Lane lane, std::byte* to, const Extent& from);
  void after(Lane lane, Ticket ticket);
  // A prefetch that has not started becomes a demand, behind those that wait. It leaves what its
  // lane was told to go after behind.
  void promote(Ticket ticket);
  bool poll(Ticket ticket);
  void wait_any(std::span<const Ticket> tickets);
  void wait(Ticket ticket);
  LaneStats stats(Lane lane) const;
  Nanos busy() const;
  static Nanos now();

  // For lanes. A read given out counts as in flight until finish().
  std::optional<FileRead> next();
  std::optional<FileRead> next_or_wait();  // nothing: stopped
  void finish(const FileRead& read);       // landed when read.why is empty
  bool stopped() const;

  // Drops what has not started and sends the lanes home; tickets dropped stay pending.
  void stop();
  // The lanes cannot go on: everything queued fails with `why`, now and later.
  void break_down(const std::string& why);

 private:
  using Lock = std::unique_lock<std::mutex>;
  struct Entry {
    Ticket ticket;  // of the copy, or of what to wait for
    bool barrier;
    std::byte* to;
    Extent from;
  };

  std::optional<FileRead> next_locked();
  bool startable(std::deque<Entry>& waiting);
  void settle(const FileRead& read);

  const int depth_;
  const Bell bell_;
  mutable std::mutex mutex_;
  std::condition_variable work_;     // something may start
  std::condition_variable settled_;  // something landed or failed
  std::array<std::deque<Entry>, kLanes> waiting_;
  TicketBook tickets_;
  LaneMeter meter_;
  bool stopped_ = false;
  std::string broken_;  // reason, once broken down
};

}  // namespace prophet
