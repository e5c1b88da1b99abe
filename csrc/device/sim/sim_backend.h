// A machine that is only a clock: one link that moves chunks in virtual time.
//
//  * One chunk at a time occupies the link, for overhead + bytes / bandwidth; it lands `latency`
//    after that, while the link goes on with the next.
//  * Whenever the link becomes free, the oldest chunk of the demand lane starts, else the oldest
//    of the prefetch lane. A chunk that has started is never interrupted. What is asked for at
//    the very moment the link becomes free is considered.
//  * Time moves by `advance` (compute: the link works meanwhile) and by waiting (to the landing
//  that is
//    waited for), never otherwise; the same calls give the same times to the nanosecond.
//
// No byte moves and no memory is touched: fast memory is address space only, so that an arena may
// be larger than the machine. With `content` set, fast memory is real and files hold that content.
// No thread runs. Calls are serialised by a lock, as Backend asks.
#pragma once

#include <array>
#include <atomic>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "device/backend.h"
#include "device/lane_meter.h"

namespace prophet {

struct SimOptions {
  double bytes_per_second = 25e9;
  Nanos latency = 0;   // from the end of a chunk's occupation to its landing
  Nanos overhead = 0;  // of the link, per chunk
  std::uint64_t alignment = 1;
  std::uint64_t file_bytes = std::uint64_t{1} << 50;  // size of every file
  // Writes the bytes of file number `file` from `offset` on to `out`.
  std::function<void(std::int32_t file, std::uint64_t offset, std::span<std::byte> out)> content;
};

class SimBackend final : public Backend {
 public:
  // Throws InvalidArgument: a bandwidth that is not above zero, negative times, an alignment that
  // is no power of two.
  explicit SimBackend(SimOptions options);
  ~SimBackend() override;

  // The processor computes for `time`: the clock moves on, and the link works meanwhile.
  void advance(Nanos time);
  // When the next chunk lands if nothing else is asked for; kNever when nothing is under way.
  static constexpr Nanos kNever = INT64_MAX;
  Nanos next_landing();

  std::string name() const override { return "sim"; }
  std::string description() const override;
  std::span<std::byte> fast_memory(std::size_t bytes) override;
  std::vector<FileInfo> open(const std::vector<std::string>& paths) override;
  std::size_t alignment() const override { return options_.alignment; }
  Ticket copy(Lane lane, std::byte* to, const Extent& from) override;
  bool poll(Ticket ticket) override;
  void wait_any(std::span<const Ticket> tickets) override;
  void wait(Ticket ticket) override;
  Ticket mark(Stream) override { return 0; }
  void after(Lane lane, Ticket ticket) override;
  void after(Stream compute, Ticket ticket) override;
  Nanos now() const override { return now_.load(std::memory_order_acquire); }
  LaneStats stats(Lane lane) const override;
  Nanos busy() const override;

 private:
  using Lock = std::lock_guard<std::mutex>;
  // Lanes are served in order, so a lane's landings are a count, and a ticket is a place in it:
  // kLanes * place + lane, places counted from 1.
  using Places = std::array<std::uint64_t, kLanes>;

  struct Copy {
    Ticket ticket = 0;
    Nanos ready = 0;  // may start from then on, if not blocked
    bool blocked = false;
    Places behind{};  // starts only after so many landings of each lane
    std::byte* to = nullptr;
    Extent from;
  };
  struct Flight {
    Ticket ticket = 0;
    Nanos lands = 0;
    std::byte* to = nullptr;
    Extent from;
  };

  static std::size_t lane_of(Ticket ticket) { return ticket % kLanes; }
  static std::uint64_t place_of(Ticket ticket) { return ticket / kLanes; }
  bool settled(Ticket ticket) const;
  bool reached(const Places& behind) const;
  std::uint64_t held(const Extent& from) const;
  Nanos occupation(const Extent& from) const;
  // The lane whose oldest chunk the link takes next, and when; null when it takes none before
  // `time`.
  struct Next {
    std::deque<Copy>* lane;
    Nanos start;
  };
  Next next_before(Nanos time);
  bool start_one_before(Nanos time);
  void land_first();
  void unblock(Nanos now);
  void run_until(Nanos time);
  void throw_if_failed(Ticket ticket) const;

  const SimOptions options_;
  mutable std::mutex mutex_;
  std::byte* memory_ = nullptr;
  std::size_t bytes_ = 0, mapped_ = 0;
  std::size_t files_ = 0;
  std::atomic<Nanos> now_ = 0;  // written under the lock, read without
  Nanos link_free_ = 0;
  Places issued_{}, landed_{};
  std::array<Places, kLanes> behind_{};         // what later copies of a lane wait for
  std::array<std::deque<Copy>, kLanes> queue_;  // not started, oldest first
  std::size_t blocked_ = 0;                     // of those
  std::deque<Flight> flying_;                   // started, not landed, in order of landing
  std::unordered_map<Ticket, std::string> failed_;
  LaneMeter meter_;
};

}  // namespace prophet
