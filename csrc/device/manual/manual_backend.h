// A backend without a machine: copies land when the caller says so, in the order he says.
//
// For tests of everything above the device room. Time is virtual, no thread runs, and the bytes
// of a file are a pure function of file number and offset, so any content can be checked
// without a file. From copy to landing the destination holds kPoison: whoever reads too early
// shows.
//
// Waiting either lands copies by itself, in an order drawn from the seed (Wait::land: a run is
// then reproducible from its seed), or blocks until another thread has landed them (Wait::block).
#pragma once

#include <array>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "device/backend.h"
#include "device/lane_meter.h"
#include "device/ticket_book.h"

namespace prophet {

// Writes the bytes of file number `file` from `offset` on to `out`.
using FileContent =
    std::function<void(std::int32_t file, std::uint64_t offset, std::span<std::byte> out)>;

struct ManualOptions {
  enum class Wait { land, block };
  std::uint64_t alignment = 1;
  std::uint64_t file_bytes = std::uint64_t{1} << 40;  // size of every file
  std::uint64_t seed = 1;
  Wait wait = Wait::land;
  double ns_per_byte = 1;  // a landing moves the clock by its bytes at this rate, at least by 1 ns
  FileContent content;     // empty: ManualBackend::byte_at
};

class ManualBackend final : public Backend {
 public:
  static constexpr std::byte kPoison{0xA5};

  explicit ManualBackend(ManualOptions options = {});

  // The content of files unless options.content says otherwise: never kPoison.
  static std::byte byte_at(std::int32_t file, std::uint64_t offset);

  struct Pending {
    Ticket ticket = 0;
    Lane lane = Lane::demand;
    Extent from;
    std::byte* to = nullptr;
    std::vector<Ticket> behind;  // starts only after all of these (see Backend::after)
  };
  // Copies neither landed nor failed, oldest first.
  std::vector<Pending> pending() const;

  // Ends one pending copy. Throws StateError when it is not pending, or still has to wait.
  void land(Ticket ticket);
  void fail(Ticket ticket, const std::string& why);
  // Lands every pending copy, oldest first.
  void land_all();
  void advance(Nanos time);

  std::string name() const override { return "manual"; }
  std::string description() const override { return "virtual clock, copies land on request"; }
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
  Nanos now() const override;
  LaneStats stats(Lane lane) const override;
  Nanos busy() const override;

 private:
  using Lock = std::unique_lock<std::mutex>;
  struct Unmap {
    void operator()(std::byte* memory) const;
  };

  bool may_start(const Pending& copy) const;
  std::deque<Pending>::iterator find(Ticket ticket);
  void land(std::deque<Pending>::iterator copy);
  void fail(std::deque<Pending>::iterator copy, std::string why);
  void land_one_at_random();

  ManualOptions options_;
  mutable std::mutex mutex_;
  std::condition_variable settled_;
  std::unique_ptr<std::byte, Unmap> memory_;
  std::size_t bytes_ = 0;
  std::size_t files_ = 0;
  Nanos now_ = 0;
  std::mt19937_64 random_;
  TicketBook tickets_;
  LaneMeter meter_;
  std::deque<Pending> pending_;
  std::array<std::vector<Ticket>, kLanes> behind_;  // what later copies of a lane wait for
};

}  // namespace prophet
