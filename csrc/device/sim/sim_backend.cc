#include "device/sim/sim_backend.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "device/copy_check.h"

namespace prophet {

SimBackend::SimBackend(SimOptions options) : options_(std::move(options)) {
  if (!(options_.bytes_per_second > 0)) {
    throw InvalidArgument("a simulated link needs a bandwidth above 0 bytes per second, not " +
                          std::to_string(options_.bytes_per_second));
  }
  if (options_.latency < 0 || options_.overhead < 0) {
    throw InvalidArgument(
        "latency and overhead of a simulated link must not be negative: they are " +
        std::to_string(options_.latency) + " and " + std::to_string(options_.overhead) + " ns");
  }
  if (options_.alignment == 0 || (options_.alignment & (options_.alignment - 1)) != 0) {
    throw InvalidArgument("the alignment of reads is a power of two, not " +
                          std::to_string(options_.alignment));
  }
}

SimBackend::~SimBackend() {
  if (memory_ != nullptr) munmap(memory_, mapped_);
}

std::string SimBackend::description() const {
  return "virtual clock, one link of " + std::to_string(options_.bytes_per_second / 1e9) + " GB/s";
}

std::span<std::byte> SimBackend::fast_memory(std::size_t bytes) {
  Lock lock(mutex_);
  if (memory_ != nullptr) {
    throw StateError("fast memory was already taken; a backend gives it once");
  }
  const int access = options_.content ? PROT_READ | PROT_WRITE : PROT_NONE;
  mapped_ = std::max<std::size_t>(bytes, 1);
  void* memory = mmap(nullptr, mapped_, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    throw InvalidArgument("cannot reserve " + std::to_string(bytes) +
                          " bytes of address space for simulated fast memory");
  }
  memory_ = static_cast<std::byte*>(memory);
  bytes_ = bytes;
  return {memory_, bytes};
}

std::vector<FileInfo> SimBackend::open(const std::vector<std::string>& paths) {
  Lock lock(mutex_);
  if (files_ > 0) throw StateError("files were already opened; a backend opens them once");
  std::vector<FileInfo> files;
  for (const std::string& path : paths) files.push_back({path, options_.file_bytes, 0});
  files_ = files.size();
  return files;
}

Ticket SimBackend::copy(Lane lane, std::byte* to, const Extent& from) {
  Lock lock(mutex_);
  check_chunk(from, to, files_, options_.alignment);
  check_inside({memory_, bytes_}, to, from.bytes);
  const auto l = static_cast<std::size_t>(lane);
  const Ticket ticket = ++issued_[l] * kLanes + l;
  const bool blocked = !reached(behind_[l]);
  if (blocked) ++blocked_;
  queue_[l].push_back({ticket, now_, blocked, behind_[l], to, from});
  return ticket;
}

bool SimBackend::settled(Ticket ticket) const {
  const std::size_t lane = lane_of(ticket);
  if (place_of(ticket) > issued_[lane]) {
    throw InvalidArgument("ticket " + std::to_string(ticket) +
                          " was never issued; ask only for what copy or mark returned");
  }
  return place_of(ticket) <= landed_[lane];
}

bool SimBackend::reached(const Places& behind) const {
  return behind[0] <= landed_[0] && behind[1] <= landed_[1];
}

// Bytes of the chunk that the file holds; 0 when it ends before the chunk's last unit.
std::uint64_t SimBackend::held(const Extent& from) const {
  const std::uint64_t size = options_.file_bytes;
  const std::uint64_t bytes = from.offset < size ? std::min(from.bytes, size - from.offset) : 0;
  return from.bytes - bytes < options_.alignment ? bytes : 0;
}

Nanos SimBackend::occupation(const Extent& from) const {
  const double moving = double(held(from)) / options_.bytes_per_second * 1e9;
  return std::max<Nanos>(1, options_.overhead + std::llround(moving));  // no chunk is free
}

SimBackend::Next SimBackend::next_before(Nanos time) {
  Next next{nullptr, time};
  for (auto& lane : queue_) {  // demand first: only an earlier start beats it
    if (lane.empty() || lane.front().blocked) continue;
    const Nanos start = std::max(link_free_, lane.front().ready);
    if (start < next.start) next = {&lane, start};
  }
  return next;
}

bool SimBackend::start_one_before(Nanos time) {
  const Next next = next_before(time);
  if (next.lane == nullptr) return false;
  const Copy& copy = next.lane->front();
  link_free_ = next.start + occupation(copy.from);
  meter_.started(static_cast<Lane>(lane_of(copy.ticket)), next.start);
  flying_.push_back({copy.ticket, link_free_ + options_.latency, copy.to, copy.from});
  next.lane->pop_front();
  return true;
}

void SimBackend::land_first() {
  const Flight flight = flying_.front();
  flying_.pop_front();
  const std::size_t l = lane_of(flight.ticket);
  const Lane lane = static_cast<Lane>(l);
  const std::uint64_t bytes = held(flight.from);
  if (bytes == 0) {
    failed_[flight.ticket] = "file " + std::to_string(flight.from.file) + " ends at " +
                             std::to_string(options_.file_bytes) + ": cannot read " +
                             std::to_string(flight.from.bytes) + " bytes at " +
                             std::to_string(flight.from.offset);
    meter_.failed(lane, flight.lands);
  } else {
    if (options_.content)
      options_.content(flight.from.file, flight.from.offset, {flight.to, bytes});
    meter_.landed(lane, bytes, flight.lands);
  }
  ++landed_[l];
  if (blocked_ > 0) unblock(flight.lands);
}

void SimBackend::unblock(Nanos now) {
  for (auto& queue : queue_) {
    for (Copy& copy : queue) {
      if (!copy.blocked || !reached(copy.behind)) continue;
      copy.blocked = false;
      copy.ready = now;
      --blocked_;
    }
  }
}

// Everything that starts or lands before `time`, and landings at it.
void SimBackend::run_until(Nanos time) {
  for (;;) {
    const bool lands = !flying_.empty() && flying_.front().lands <= time;
    if (start_one_before(lands ? flying_.front().lands : time)) continue;
    if (!lands) break;
    land_first();
  }
  now_.store(time, std::memory_order_release);
}

Nanos SimBackend::next_landing() {
  Lock lock(mutex_);
  if (!flying_.empty()) return flying_.front().lands;
  const Next next = next_before(kNever);
  if (next.lane == nullptr) return kNever;
  return next.start + occupation(next.lane->front().from) + options_.latency;
}

void SimBackend::advance(Nanos time) {
  if (time < 0) throw InvalidArgument("a clock does not go back: advance by 0 ns or more");
  Lock lock(mutex_);
  run_until(now_ + time);
}

void SimBackend::throw_if_failed(Ticket ticket) const {
  if (failed_.empty()) return;
  const auto at = failed_.find(ticket);
  if (at != failed_.end()) throw ReadError(at->second);
}

bool SimBackend::poll(Ticket ticket) {
  Lock lock(mutex_);
  if (!settled(ticket)) return false;
  throw_if_failed(ticket);
  return true;
}

void SimBackend::wait_any(std::span<const Ticket> tickets) {
  Lock lock(mutex_);
  if (tickets.empty()) return;
  while (std::none_of(tickets.begin(), tickets.end(), [&](Ticket t) { return settled(t); })) {
    // An unsettled ticket is queued or flying, and what it waits for was asked for before it.
    if (flying_.empty()) start_one_before(kNever);
    run_until(flying_.front().lands);
  }
}

void SimBackend::wait(Ticket ticket) {
  wait_any({&ticket, 1});
  poll(ticket);
}

void SimBackend::after(Lane lane, Ticket ticket) {
  Lock lock(mutex_);
  if (settled(ticket)) return;
  std::uint64_t& behind = behind_[static_cast<std::size_t>(lane)][lane_of(ticket)];
  behind = std::max(behind, place_of(ticket));
}

void SimBackend::after(Stream, Ticket ticket) { wait(ticket); }

LaneStats SimBackend::stats(Lane lane) const {
  Lock lock(mutex_);
  return meter_.stats(lane, now_);
}

Nanos SimBackend::busy() const {
  Lock lock(mutex_);
  return meter_.busy(now_);
}

}  // namespace prophet
