#include "device/cpu/lane_queue.h"

#include <algorithm>
#include <chrono>

namespace prophet {

Nanos LaneQueue::now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

Ticket LaneQueue::push(Lane lane, std::byte* to, const Extent& from) {
  Lock lock(mutex_);
  const Ticket ticket = tickets_.issue();
  if (!broken_.empty()) {
    tickets_.fail(ticket, broken_);
  } else {
    waiting_[static_cast<std::size_t>(lane)].push_back({ticket, false, to, from});
    work_.notify_one();
  }
  return ticket;
}

void LaneQueue::after(Lane lane, Ticket ticket) {
  Lock lock(mutex_);
  if (tickets_.settled(ticket)) return;
  waiting_[static_cast<std::size_t>(lane)].push_back({ticket, true, nullptr, {}});
}

void LaneQueue::promote(Ticket ticket) {
  Lock lock(mutex_);
  auto& early = waiting_[static_cast<std::size_t>(Lane::prefetch)];
  const auto at = std::find_if(early.begin(), early.end(), [&](const Entry& entry) {
    return !entry.barrier && entry.ticket == ticket;
  });
  if (at == early.end()) return;
  waiting_[static_cast<std::size_t>(Lane::demand)].push_back(*at);
  early.erase(at);
  work_.notify_one();
}

bool LaneQueue::startable(std::deque<Entry>& waiting) {
  while (!waiting.empty() && waiting.front().barrier && tickets_.settled(waiting.front().ticket)) {
    waiting.pop_front();
  }
  return !waiting.empty() && !waiting.front().barrier;
}

std::optional<FileRead> LaneQueue::next_locked() {
  if (meter_.in_flight() >= depth_) return std::nullopt;
  for (Lane lane : {Lane::demand, Lane::prefetch}) {
    if (lane == Lane::prefetch &&
        (meter_.in_flight(lane) >= kPrefetchInFlight || meter_.in_flight(Lane::demand) > 0)) {
      continue;
    }
    auto& waiting = waiting_[static_cast<std::size_t>(lane)];
    if (!startable(waiting)) continue;
    FileRead read;
    read.ticket = waiting.front().ticket;
    read.lane = lane;
    read.to = waiting.front().to;
    read.from = waiting.front().from;
    waiting.pop_front();
    meter_.started(lane, now());
    return read;
  }
  return std::nullopt;
}

std::optional<FileRead> LaneQueue::next() {
  Lock lock(mutex_);
  return next_locked();
}

std::optional<FileRead> LaneQueue::next_or_wait() {
  Lock lock(mutex_);
  std::optional<FileRead> read;
  work_.wait(lock, [&] { return stopped_ || (read = next_locked()); });
  return read;
}

void LaneQueue::finish(const FileRead& read) {
  {
    Lock lock(mutex_);
    settle(read);
  }
  if (bell_) bell_(read);
}

void LaneQueue::settle(const FileRead& read) {
  if (read.why.empty()) {
    meter_.landed(read.lane, read.size, now());
    tickets_.land(read.ticket);
  } else {
    meter_.failed(read.lane, now());
    tickets_.fail(read.ticket, read.why);
  }
  settled_.notify_all();
  work_.notify_all();  // an `after` or the limit of prefetches may have held up more than one
}

bool LaneQueue::stopped() const {
  Lock lock(mutex_);
  return stopped_;
}

void LaneQueue::stop() {
  Lock lock(mutex_);
  stopped_ = true;
  for (auto& waiting : waiting_) waiting.clear();
  work_.notify_all();
}

void LaneQueue::break_down(const std::string& why) {
  std::vector<FileRead> dropped;
  {
    Lock lock(mutex_);
    broken_ = why;
    for (auto& waiting : waiting_) {
      for (const Entry& entry : waiting) {
        if (entry.barrier) continue;
        tickets_.fail(entry.ticket, why);
        FileRead& read = dropped.emplace_back();
        read.ticket = entry.ticket;
        read.to = entry.to;
        read.why = why;
      }
      waiting.clear();
    }
    settled_.notify_all();
  }
  for (const FileRead& read : dropped) {
    if (bell_) bell_(read);
  }
}

bool LaneQueue::poll(Ticket ticket) {
  Lock lock(mutex_);
  return tickets_.landed(ticket);
}

void LaneQueue::wait_any(std::span<const Ticket> tickets) {
  if (tickets.empty()) return;
  Lock lock(mutex_);
  settled_.wait(lock, [&] {
    return std::any_of(tickets.begin(), tickets.end(),
                       [&](Ticket each) { return tickets_.settled(each); });
  });
}

void LaneQueue::wait(Ticket ticket) {
  wait_any({&ticket, 1});
  poll(ticket);
}

LaneStats LaneQueue::stats(Lane lane) const {
  Lock lock(mutex_);
  return meter_.stats(lane, now());
}

Nanos LaneQueue::busy() const {
  Lock lock(mutex_);
  return meter_.busy(now());
}

}  // namespace prophet
