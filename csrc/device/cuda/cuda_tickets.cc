// CudaCopies as its callers see it: made, asked, waited for, ended.
#include <algorithm>
#include <chrono>

#include "core/error.h"
#include "device/cuda/cuda_backend.h"
#include "device/cuda/cuda_copies.h"

namespace prophet {
namespace {

// How often somebody who waits for a mark looks whether the device has come there. It does not
// count as a call that waits, and a copy that lands ends the wait at once.
constexpr std::chrono::microseconds kLook{20};

}  // namespace

CudaCopies::CudaCopies(const CudaApi& api, int device, const HostPoolOptions& pool, LaneQueue& disk,
                       std::function<void()> wake)
    : api_(api), disk_(disk), wake_(std::move(wake)), events_(api, device) {
  on_device(api_, device, [&] {
    pool_ = std::make_unique<HostPool>(api_, pool, kLeastBlocks);
    for (Lane lane : {Lane::demand, Lane::prefetch}) {
      void* stream = nullptr;
      cuda_check(api_, api_.stream_create(static_cast<int>(lane), &stream),
                 "making a stream to copy on");
      link(lane).stream = CudaHandle(stream, CudaDestroy{api_.stream_destroy});
      link(lane).epochs.emplace_back();
    }
  });
  events_.give_back(events_.take());  // what cannot be had is found out now
  try {
    for (Lane lane : {Lane::demand, Lane::prefetch}) {
      link(lane).thread = std::thread([this, lane] { land_flights(lane); });
    }
  } catch (...) {
    join();
    throw;
  }
}

CudaCopies::~CudaCopies() { join(); }

void CudaCopies::stop() {
  Lock lock(mutex_);
  stopped_ = true;
  for (Link& l : links_) l.flying.notify_all();
}

void CudaCopies::join() {
  stop();
  for (Link& l : links_) {
    if (l.thread.joinable()) l.thread.join();
  }
}

// Looks whether the device has come to a mark.
void CudaCopies::refresh(Ticket ticket) {
  const auto mark = marks_.find(ticket);
  if (mark == marks_.end()) return;
  int code = api_.event_query(mark->second);
  if (code != kCudaSuccess && code != kCudaNotReady) code = api_.event_query(mark->second);
  if (code == kCudaNotReady) return;
  if (code == kCudaSuccess) return end_mark(mark, {});
  // Nobody will ever know when memory that is read may be written.
  if (lost_.empty()) lose(cuda_sentence(api_, code, "waiting for compute"));
}

void CudaCopies::end_mark(std::map<Ticket, void*>::iterator mark, const std::string& why) {
  const auto [ticket, event] = *mark;
  marks_.erase(mark);
  events_.give_back(event);
  if (why.empty()) {
    tickets_.land(ticket);
  } else {
    tickets_.fail(ticket, why, true);
  }
  settled_.notify_all();
}

bool CudaCopies::poll(Ticket ticket) {
  Lock lock(mutex_);
  refresh(ticket);
  // What the device has done counts, though its lane's thread may not have got round to it.
  const auto copy = copies_.find(ticket);
  if (copy != copies_.end() && event_of(ticket) != nullptr &&
      api_.event_query(copy->second.event) == kCudaSuccess) {
    settled_.wait(lock, [&] { return tickets_.settled(ticket); });
  }
  return tickets_.landed(ticket);
}

void CudaCopies::wait_any(std::span<const Ticket> tickets) {
  if (tickets.empty()) return;
  Lock lock(mutex_);
  for (;;) {
    bool marks = false;
    for (Ticket ticket : tickets) {
      refresh(ticket);
      if (tickets_.settled(ticket)) return;
      marks = marks || marks_.contains(ticket);
    }
    if (marks) {
      settled_.wait_for(lock, kLook);
    } else {
      settled_.wait(lock);
    }
  }
}

void CudaCopies::wait(Ticket ticket) {
  wait_any({&ticket, 1});
  poll(ticket);
}

Ticket CudaCopies::mark(Stream compute) {
  Lock lock(mutex_);
  // Marks that nobody asks for again end here, in the order they were made.
  while (!marks_.empty()) {
    const auto oldest = marks_.begin()->first;
    refresh(oldest);
    if (marks_.contains(oldest)) break;
  }
  if (!lost_.empty()) throw DeviceError(lost_);
  void* event = events_.take();
  const int code = api_.event_record(event, reinterpret_cast<void*>(compute));
  if (code != kCudaSuccess) {
    events_.give_back(event);
    const std::string sentence =
        cuda_sentence(api_, code, "recording an event on a compute stream of the caller") +
        " The stream must belong to the device of the experts.";
    look_for_loss(sentence);
    throw DeviceError(sentence);
  }
  const Ticket ticket = tickets_.issue();
  marks_[ticket] = event;
  return ticket;
}

void CudaCopies::after(Lane lane, Ticket ticket) {
  Lock lock(mutex_);
  if (tickets_.settled(ticket)) return;
  Link& l = link(lane);
  if (l.epochs.back().unstarted > 0) l.epochs.emplace_back();
  l.epochs.back().behind.push_back(ticket);
}

void CudaCopies::after(Stream compute, Ticket ticket) {
  Lock lock(mutex_);
  for (;;) {
    if (tickets_.settled(ticket)) {
      tickets_.landed(ticket);
      return;
    }
    if (void* event = event_of(ticket)) {
      const int code = api_.stream_wait_event(reinterpret_cast<void*>(compute), event);
      return cuda_check(api_, code, "making a compute stream wait for a copy");
    }
    settled_.wait(lock);
  }
}

LaneStats CudaCopies::stats(Lane lane) const {
  Lock lock(mutex_);
  return meter_.stats(lane, LaneQueue::now());
}

Nanos CudaCopies::busy() const {
  Lock lock(mutex_);
  return meter_.busy(LaneQueue::now());
}

StagingStats CudaCopies::staging() const {
  StagingStats out;
  for (Lane lane : {Lane::demand, Lane::prefetch}) out.read[index(lane)] = disk_.stats(lane);
  Lock lock(mutex_);
  out.found_bytes = found_bytes_;
  out.dropped_bytes = pool_->dropped();
  out.capacity = pool_->capacity();
  out.held = pool_->held();
  return out;
}

std::string CudaCopies::failure() const {
  Lock lock(mutex_);
  return lost_;
}

}  // namespace prophet
