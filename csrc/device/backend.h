// Everything Prophet asks of a machine: fast memory, lanes that fill it, a clock.
//
// A backend moves bytes and tells the time; it decides nothing. `copy` returns at once with
// a Ticket; the ticket is done when the bytes have landed or the copy has failed. Tickets
// are cheap numbers, never reused, and ticket 0 is always done.
//
// Three hard cases that every backend must honour:
//  * a demand behind a running prefetch: chunks of Lane::demand start before any waiting
//    chunk of Lane::prefetch, so a demand waits for chunks in flight only;
//  * a slot overwritten while it is still read: a lane told to go `after` a ticket does not
//    start later copies before that ticket is done;
//  * a failed read never becomes weights: a short read, an I/O error or a changed file marks
//    the ticket failed, and `poll`, `wait` throw ReadError for it (naming file, offset, cause), or
//    DeviceError where the device failed it.
//
// Between files and fast memory a backend may have a staging tier: host memory from which fast
// memory is filled quickly. `stage` brings bytes no further than that; a copy whose bytes are
// there takes only the link. Without one everything asked of it is nothing.
//
// Thread-safety: all calls may come from any thread. Nothing here calls back upwards.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/types.h"

namespace prophet {

using Ticket = std::uint64_t;
using Stream = std::uintptr_t;  // a compute stream's raw handle; 0 on a CPU

enum class Lane : std::uint8_t { demand = 0, prefetch = 1 };
constexpr int kLanes = 2;

// What a lane has done since the backend was made.
struct LaneStats {
  std::uint64_t bytes = 0;   // landed
  std::uint64_t copies = 0;  // landed
  Nanos busy = 0;            // time with at least one copy of this lane in flight
};

// What the staging tier has done since the backend was made; all zero without one.
struct StagingStats {
  std::array<LaneStats, kLanes> read;    // files to staging
  std::uint64_t found_bytes = 0;         // that copies found there: they cost the link alone
  std::uint64_t dropped_bytes = 0;       // that made room for others
  std::uint64_t capacity = 0, held = 0;  // bytes
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string name() const = 0;  // "cpu", "cuda", "sim"
  virtual std::string description()
      const = 0;  // one line for `prophet doctor`: "io_uring, O_DIRECT, depth 16"

  // Whether the host may follow addresses of fast memory. False: they are a device's, good for
  // `copy` and for kernels alone.
  virtual bool host_visible() const { return true; }
  // Why this machine can do nothing any more (a device was lost); empty while it works.
  virtual std::string failure() const { return {}; }

  // The fast tier: `bytes` of memory aligned to at least 4096, once per backend. It lives as
  // long as the backend. Throws InvalidArgument, or DeviceError where a device refuses, saying
  // how much was asked.
  virtual std::span<std::byte> fast_memory(std::size_t bytes) = 0;

  // Opens the files that later copies name by index; once per backend. Throws ReadError.
  virtual std::vector<FileInfo> open(const std::vector<std::string>& paths) = 0;

  // The unit in which file offsets, lengths and fast-memory addresses of copies must be
  // given (1, 512 or 4096 ...); valid after open.
  virtual std::size_t alignment() const = 0;

  // Brings one chunk of a file to `to`. `from.at` is ignored. At most a few MiB: a chunk is
  // the unit of cancellation and the longest delay a demand can meet.
  virtual Ticket copy(Lane lane, std::byte* to, const Extent& from) = 0;

  // Brings one chunk to the staging tier, at prefetch class. Done at once without one.
  virtual Ticket stage(const Extent& /*from*/) { return 0; }
  virtual bool has_staging() const { return false; }
  virtual StagingStats staging() const { return {}; }

  virtual bool poll(Ticket ticket) = 0;  // landed? throws ReadError if it failed
  virtual void wait_any(std::span<const Ticket> tickets) = 0;  // until one is done or failed
  virtual void wait(Ticket ticket) = 0;                        // until done; throws ReadError

  virtual Ticket mark(Stream compute) = 0;                // all compute queued so far
  virtual void after(Lane lane, Ticket ticket) = 0;       // no later copy starts before it
  virtual void after(Stream compute, Ticket ticket) = 0;  // no later compute starts before it

  virtual Nanos now() const = 0;  // the only clock
  virtual LaneStats stats(Lane lane) const = 0;
  // Time with at least one copy of any lane in flight.
  virtual Nanos busy() const = 0;
};

}  // namespace prophet
