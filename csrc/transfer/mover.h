// When do experts move? Turns demands and wishes into chunks on the backend's lanes.
//
// A transfer brings one expert into the slot the cache gave it, chunk by chunk.
//  * demand class: all chunks are handed to the demand lane at once;
//  * prefetch class: at most `prefetch_chunks` are in flight, so that a demand waits for no
//    more than those and a cancellation saves the rest;
//  * promotion: a demand for an expert on its way sends its remaining chunks down the demand
//    lane; the whole transfer then counts as late;
//  * cancellation: no further chunk is started; the slot stays `loading` until those in flight
//    have landed (the disk is still writing there), then becomes free, unless all had been started:
//    then the expert simply arrives;
//  * failure: as cancellation, and the reason is handed to whoever waits;
//  * a wish that reaches no further than the staging tier takes no slot (transfer/stager.h).
//
// Not thread-safe: the engine holds the lock. Nothing here blocks.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cache/cache.h"
#include "core/types.h"
#include "device/backend.h"
#include "store/weight_store.h"
#include "telemetry/recorder.h"
#include "transfer/stager.h"

namespace prophet {

struct MoverOptions {
  std::uint64_t chunk_bytes =
      1 << 20;  // rounded down to the backend's alignment, at least one unit
  int prefetch_chunks = 2;
};

class Mover {
 public:
  Mover(const WeightStore& store, Backend& backend, Cache& cache, std::span<std::byte> arena,
        Recorder& recorder, MoverOptions options);

  // Asked before a slot is written, and again while the answer is no: where a device reads what was
  // evicted a moment ago, a transfer is held back until it has passed.
  using MayOverwrite = std::function<bool(std::int32_t slot)>;
  void ask_before_overwriting(MayOverwrite may) { may_overwrite_ = std::move(may); }

  // Something that ended: the expert is resident, or failed with a reason.
  struct Ending {
    ExpertKey key;
    std::string error;    // empty: landed
    bool device = false;  // not the reading failed but the device
  };

  // Puts an expert that is not resident on its way at demand class. False when no slot can be
  // had now: wait until another transfer has ended and try again.
  bool demand(ExpertKey key);

  // No slot could be had: one of those that prefetches `in_the_way` are filling becomes free, at
  // the latest when the chunks in flight have landed and been collected.
  void make_way(const std::function<bool(ExpertKey)>& in_the_way);

  // The whole set of wished prefetches from now on.
  void want(std::span<const Prefetch> wanted);

  // Collects what has ended. Cheap when idle. The caller leases what it was waiting for before it
  // calls `start_wishes`, which may evict anything that is resident and not leased.
  void collect(std::vector<Ending>& ended);
  // Starts wished prefetches while their lane has room.
  void start_wishes();

  // Tickets to wait for until `key` may have moved on; one when all of its chunks have been
  // started.
  void tickets(ExpertKey key, std::vector<Ticket>& out) const;
  // Tickets of running prefetches, to fast memory or to the staging tier.
  void prefetch_tickets(std::vector<Ticket>& out) const;
  // True while a prefetch is wished or running.
  bool prefetching() const;

  // Keys of running transfers.
  void moving(std::vector<ExpertKey>& out) const;

  // The router has used `key`. True when a prefetch had brought it: its bytes have paid.
  bool used(ExpertKey key);
  // True when `key` would still be here had nothing been wished: a wish took its slot, and no
  // demand has needed a slot since.
  bool displaced(ExpertKey key) const;
  // Bytes of prefetches that were moved, or on the link, when the router overtook them.
  std::uint64_t overtaken_bytes() const { return overtaken_bytes_; }
  // True while a chunk of a prefetch is on its way.
  bool prefetch_on_link() const { return prefetch_chunks_in_flight() > 0; }

  // Bytes that prefetches brought, resident and not used yet.
  std::uint64_t unused_bytes() const;

 private:
  using Chunk = std::pair<Ticket, std::uint64_t>;  // and its bytes
  struct Transfer {
    ExpertKey key;
    std::int32_t slot = -1;
    Lane lane = Lane::demand;
    bool foreseen = false;      // began as a prefetch
    bool cancelled = false;     // start no further chunk
    std::string error;          // of the first failed chunk
    bool device = false;        // which the device failed
    std::size_t extent = 0;     // next chunk: this extent ...
    std::uint64_t done = 0;     // ... from this byte of it
    std::uint64_t moved = 0;    // bytes landed
    std::vector<Chunk> chunks;  // in flight, oldest first
    bool clear = false;         // the slot may be written
    Nanos begin = 0;
  };

  bool start(ExpertKey key, Lane lane, const std::optional<Cache::Placement>& placement);
  bool clear(Transfer& transfer);
  bool start_chunk(Transfer& transfer);  // false when none is left, or the slot is not clear
  void start_all_chunks(Transfer& transfer);
  bool landed(Transfer& transfer, const Chunk& chunk);  // or failed: noted in the transfer
  static void failed(Transfer& transfer, const std::string& why, bool device);
  void poll(Transfer& transfer);
  bool all_started(const Transfer& transfer) const;
  std::uint64_t started(const Transfer& transfer) const;  // bytes landed or on the link
  void finish(const Transfer& transfer, std::vector<Ending>& ended);
  void evicted(ExpertKey key);
  void forget_displaced();  // the oldest one: it would have left by now
  Transfer* find(ExpertKey key);
  const Transfer* find(ExpertKey key) const;
  int prefetch_chunks_in_flight() const;

  const WeightStore& store_;
  Backend& backend_;
  Cache& cache_;
  std::span<std::byte> arena_;
  Recorder& recorder_;
  MoverOptions options_;
  MayOverwrite may_overwrite_;
  Stager stager_;
  std::vector<Transfer> moving_;              // few: at most the experts of some layers
  std::vector<Prefetch> wishes_;              // for fast memory, not started, best last
  std::vector<std::uint64_t> unused_;         // [experts] bytes a prefetch brought, not used yet
  std::vector<bool> displaced_;               // [experts]
  std::deque<ExpertKey> displaced_in_order_;  // oldest first
  std::uint64_t overtaken_bytes_ = 0;
};

}  // namespace prophet
