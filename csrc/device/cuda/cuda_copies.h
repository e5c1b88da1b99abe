// The way of a copy: from its file into the pool, from the pool over the link.
//
//   copy ─▶ waiting ─(a block of the pool)─▶ being read ─▶ ready ─(order of its lane)─▶ in flight
//              └────────── the pool has its bytes ───────────┘
//
// Runs. A copy is cut into runs of one block; it lands with its last run. Runs become ready in any
// order, since some are in the pool and others come from a disk; they may overtake each other
// except where the lane was told to go `after` a ticket: a lane is a row of epochs, each begins
// with such tickets, and no run starts before all of earlier epochs have. So a copy stream never
// waits for an event on behalf of a run that a run before it in the stream depends on.
//
// Link. A run of the demand class is one copy of the device, of which a few may be queued. One of
// the prefetch class is two halves, and no more than two are queued: the link does not fall idle
// between them, and a demand finds one block ahead of it.
//
// Threads. One mutex guards everything. Whoever made a change (a caller, the disk, a landing)
// moves on what it allows, `pump`, and leaves. One thread per lane waits for its oldest flight.
#pragma once

#include <array>
#include <condition_variable>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "device/backend.h"
#include "device/cpu/lane_queue.h"
#include "device/cuda/cuda_api.h"
#include "device/cuda/cuda_handles.h"
#include "device/cuda/host_pool.h"
#include "device/lane_meter.h"
#include "device/ticket_book.h"

namespace prophet {

class CudaCopies {
 public:
  // `wake` tells the disk's lanes that `disk` was added to. Throws DeviceError.
  CudaCopies(const CudaApi& api, int device, const HostPoolOptions& pool, LaneQueue& disk,
             std::function<void()> wake);
  // The disk's lanes must be gone. Ends flights; copies that have not started never land.
  ~CudaCopies();
  CudaCopies(const CudaCopies&) = delete;
  CudaCopies& operator=(const CudaCopies&) = delete;

  // `to` null: into the pool only.
  Ticket copy(Lane lane, std::byte* to, const Extent& from);
  void read(const FileRead& read);  // the disk's bell
  void stop();                      // starts nothing any more

  // As Backend.
  bool poll(Ticket ticket);
  void wait_any(std::span<const Ticket> tickets);
  void wait(Ticket ticket);
  Ticket mark(Stream compute);
  void after(Lane lane, Ticket ticket);
  void after(Stream compute, Ticket ticket);
  LaneStats stats(Lane lane) const;
  Nanos busy() const;
  StagingStats staging() const;
  std::string failure() const;
  const HostPool& pool() const { return *pool_; }  // what it was made as

 private:
  using Lock = std::unique_lock<std::mutex>;
  struct Copy {
    Ticket ticket;
    Lane lane;
    std::size_t unstarted = 0, unlanded = 0;  // runs
    std::uint64_t held = 0;                   // bytes landed
    bool moving = false;                      // the meter counts it
    void* event = nullptr;                    // of the run issued last; null: it has none
    std::string why;                          // the first failure
    bool device = false;                      // ... and it was the device's
  };
  struct Epoch;
  struct Run {
    Copy* copy;
    std::byte* to;  // null: into the pool only
    Extent from;
    Epoch* epoch;
    HostPool::Block* block = nullptr;
    std::uint64_t sent = 0;  // bytes given to the stream
  };
  struct Epoch {
    std::vector<Ticket> behind;  // start after these
    std::size_t unstarted = 0;   // runs
    std::deque<Run> ready;
  };
  struct Flight {
    Run run;
    void* event;      // null: it has none, the stream is waited for
    bool last;        // of its run
    std::string why;  // the run failed, and is over when what was sent of it is
  };
  struct Reading {
    HostPool::Block* block;
    Ticket read;
    Lane lane;
    std::vector<Run> runs;
  };
  struct Link {
    CudaHandle stream;
    std::deque<Run> waiting;  // for a block
    std::list<Epoch> epochs;  // at least one; later copies belong to the last
    std::deque<Flight> flights;
    std::condition_variable flying;
    std::thread thread;
  };
  static std::size_t index(Lane lane) { return static_cast<std::size_t>(lane); }
  Link& link(Lane lane) { return links_[index(lane)]; }

  void overwritten(const std::byte* place, const Extent& by);
  void pump();
  void admit(Lane lane);
  bool ripe(Lane lane);
  bool may_admit(Lane lane);
  void start_read(Reading& reading, const Extent& run);
  void ended(const FileRead& read);
  void ready(const Run& run);
  bool may_start(Lane lane);
  bool passable(Epoch& epoch);
  void start(Lane lane);
  void land_flights(Lane lane);
  void join();
  void started(const Run& run);
  void done(const Run& run, const std::string& why, bool device);
  void look_for_loss(const std::string& sentence);
  void lose(const std::string& sentence);
  void refresh(Ticket mark);
  void* event_of(Ticket ticket);
  void end_mark(std::map<Ticket, void*>::iterator mark, const std::string& why);

  const CudaApi& api_;
  LaneQueue& disk_;
  const std::function<void()> wake_;
  std::unique_ptr<HostPool> pool_;
  CudaEvents events_;
  std::array<Link, kLanes> links_;

  mutable std::mutex mutex_;
  std::condition_variable settled_;  // a ticket was settled, or its copy has been issued
  TicketBook tickets_;
  LaneMeter meter_;
  std::unordered_map<Ticket, Copy> copies_;                // not settled
  std::unordered_map<const std::byte*, Reading> reading_;  // by the block's memory
  std::map<Ticket, void*> marks_;                          // not seen done, and their events
  std::unordered_map<const std::byte*, Extent> stands_;    // what a place was last given
  int early_reads_ = 0;                                    // for the prefetch class
  std::uint64_t early_held_ = 0;                           // blocks that its runs use
  std::uint64_t found_bytes_ = 0;
  bool stopped_ = false;
  std::string lost_;  // why the device can do nothing any more
};

}  // namespace prophet
