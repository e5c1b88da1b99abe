#include "device/cuda/cuda_copies.h"

#include <algorithm>

#include "core/error.h"

namespace prophet {
namespace {

// A demand that comes now waits for no more than what is under way for prefetches: reads that the
// disk has been given, and one block on the link.
constexpr int kEarlyReads = LaneQueue::kPrefetchInFlight;
// Enough to keep the link busy while a landing is noticed.
constexpr std::size_t kDemandInFlight = 8;
constexpr std::size_t kHalvesInFlight = 2;

std::string bytes_text(std::uint64_t bytes) { return std::to_string(bytes) + " bytes"; }

}  // namespace

Ticket CudaCopies::copy(Lane lane, std::byte* to, const Extent& from) {
  Lock lock(mutex_);
  const Ticket ticket = tickets_.issue();
  if (!lost_.empty()) {
    tickets_.fail(ticket, lost_, true);
    return ticket;
  }
  Copy& copy = copies_[ticket];
  copy.ticket = ticket;
  copy.lane = lane;
  Link& l = link(lane);
  Epoch* epoch = to == nullptr ? nullptr : &l.epochs.back();
  const std::uint64_t most = pool_->block_bytes();
  for (std::uint64_t at = 0; at < from.bytes; at += most) {
    const Extent part{from.file, from.offset + at, std::min(most, from.bytes - at), 0};
    l.waiting.push_back({&copy, to == nullptr ? nullptr : to + at, part, epoch, nullptr});
    ++copy.unlanded;
    ++copy.unstarted;
    if (epoch == nullptr) continue;
    ++epoch->unstarted;
    overwritten(to + at, part);
  }
  pump();
  return ticket;
}

// What stood there has gone from fast memory: its block is worth as much as one just used.
void CudaCopies::overwritten(const std::byte* place, const Extent& by) {
  Extent& stands = stands_[place];
  HostPool::Block* const block = stands.bytes > 0 ? pool_->find(stands) : nullptr;
  if (block != nullptr) pool_->touch(*block);
  stands = by;
}

void CudaCopies::pump() {
  for (bool moved = !stopped_; moved;) {  // a run that fails may let others go on
    moved = false;
    for (Lane lane : {Lane::demand, Lane::prefetch}) admit(lane);
    for (Lane lane : {Lane::demand, Lane::prefetch}) {
      while (may_start(lane)) {
        start(lane);
        moved = true;
      }
    }
  }
}

// Whether the oldest run that waits for a block could use one: what goes after a copy that has not
// started yet must not take the blocks which that copy needs.
bool CudaCopies::ripe(Lane lane) {
  const std::deque<Run>& waiting = link(lane).waiting;
  return !waiting.empty() && (waiting.front().epoch == nullptr || passable(*waiting.front().epoch));
}

// Prefetches leave most of the pool to demands.
bool CudaCopies::may_admit(Lane lane) {
  if (!ripe(lane)) return false;
  if (lane == Lane::demand) return true;
  const std::uint64_t blocks = pool_->capacity() / pool_->block_bytes();
  return early_reads_ < kEarlyReads && early_held_ < blocks / 4 && !ripe(Lane::demand);
}

// Gives blocks to runs that wait for one, in order.
void CudaCopies::admit(Lane lane) {
  std::deque<Run>& waiting = link(lane).waiting;
  while (may_admit(lane)) {
    Run run = waiting.front();
    HostPool::Block* block = pool_->find(run.from);
    if (block == nullptr) {
      block = pool_->take(run.from);
      if (block == nullptr) return;
      reading_[block->memory] = {block, 0, lane, {}};
    }
    waiting.pop_front();
    run.block = block;
    pool_->use(*block);
    early_held_ += lane == Lane::prefetch;
    if (run.to != nullptr && !run.copy->moving) {
      run.copy->moving = true;
      meter_.started(lane, LaneQueue::now());
    }
    if (block->state == HostPool::Block::State::ready) {
      if (run.to != nullptr) found_bytes_ += block->held;
      ready(run);
      continue;
    }
    Reading& reading = reading_[block->memory];
    reading.runs.push_back(run);
    if (reading.read == 0) {
      start_read(reading, run.from);
    } else if (lane == Lane::demand && reading.lane == Lane::prefetch) {
      disk_.promote(reading.read);
      reading.lane = Lane::demand;
      --early_reads_;
      wake_();
    }
  }
}

void CudaCopies::start_read(Reading& reading, const Extent& run) {
  early_reads_ += reading.lane == Lane::prefetch;
  const Ticket ticket = disk_.push(reading.lane, reading.block->memory, run);
  reading.read = ticket;
  wake_();
  try {
    disk_.poll(ticket);
  } catch (const ReadError& error) {  // broken down: such reads end at once, without the bell
    FileRead read;
    read.ticket = ticket;
    read.to = reading.block->memory;
    read.why = error.what();
    ended(read);
  }
}

void CudaCopies::read(const FileRead& read) {
  Lock lock(mutex_);
  ended(read);
  pump();
}

void CudaCopies::ended(const FileRead& read) {
  const auto at = reading_.find(read.to);
  if (at == reading_.end() || at->second.read != read.ticket) return;
  const Reading reading = std::move(at->second);
  reading_.erase(at);
  early_reads_ -= reading.lane == Lane::prefetch;
  if (read.why.empty()) {
    pool_->filled(*reading.block, read.size);
    for (const Run& run : reading.runs) ready(run);
  } else {
    try {
      disk_.poll(read.ticket);
    } catch (const ReadError&) {  // told: the disk may forget it
    }
    for (const Run& run : reading.runs) {
      started(run);
      done(run, read.why, false);
    }
    pool_->drop(*reading.block);
  }
}

void CudaCopies::ready(const Run& run) {
  if (run.to != nullptr && lost_.empty()) return run.epoch->ready.push_back(run);
  started(run);
  done(run, lost_, true);
}

bool CudaCopies::may_start(Lane lane) {
  Link& l = link(lane);
  const bool full = lane == Lane::demand ? l.flights.size() >= kDemandInFlight
                                         : l.flights.size() >= kHalvesInFlight ||
                                               !link(Lane::demand).flights.empty();
  if (full) return false;
  while (l.epochs.size() > 1 && l.epochs.front().unstarted == 0) l.epochs.pop_front();
  Epoch& epoch = l.epochs.front();
  return !epoch.ready.empty() && passable(epoch);
}

// Every ticket is settled or has an event that a stream can wait for.
bool CudaCopies::passable(Epoch& epoch) {
  std::erase_if(epoch.behind, [&](Ticket ticket) { return tickets_.settled(ticket); });
  return std::all_of(epoch.behind.begin(), epoch.behind.end(),
                     [&](Ticket ticket) { return event_of(ticket) != nullptr; });
}

void* CudaCopies::event_of(Ticket ticket) {
  const auto mark = marks_.find(ticket);
  if (mark != marks_.end()) return mark->second;
  const auto copy = copies_.find(ticket);
  return copy == copies_.end() || copy->second.unstarted > 0 ? nullptr : copy->second.event;
}

// Hands the lane's next run, or half of it, to its stream.
void CudaCopies::start(Lane lane) {
  Link& l = link(lane);
  Epoch& epoch = l.epochs.front();
  Run run = epoch.ready.front();
  epoch.ready.pop_front();
  std::uint64_t bytes = run.block->held - run.sent;
  if (lane == Lane::prefetch) bytes = std::min(bytes, pool_->block_bytes() / 2);
  void* stream = l.stream.get();
  void* event = nullptr;
  std::string why;
  try {
    event = events_.take();
    const std::string what = "copying " + bytes_text(bytes) + " to the device";
    for (Ticket ticket : epoch.behind) {
      cuda_check(api_, api_.stream_wait_event(stream, event_of(ticket)), what);
    }
    epoch.behind.clear();
    cuda_check(api_,
               api_.copy_async(run.to + run.sent, run.block->memory + run.sent, bytes,
                               CudaCopy::to_device, stream),
               what);
    if (api_.event_record(event, stream) != kCudaSuccess) {
      events_.give_back(event);
      event = nullptr;
    }
  } catch (const DeviceError& error) {
    if (event != nullptr) events_.give_back(event);
    event = nullptr;
    why = error.what();
  }
  run.sent += bytes;
  const bool last = !why.empty() || run.sent == run.block->held;
  run.copy->event = event;
  if (last) {
    started(run);
  } else {
    epoch.ready.push_front(run);
  }
  l.flights.push_back({run, event, last, why});
  l.flying.notify_one();
  if (run.copy->unstarted == 0) settled_.notify_all();
  if (!why.empty()) look_for_loss(why);
}

void CudaCopies::started(const Run& run) {
  --run.copy->unstarted;
  if (run.epoch != nullptr) --run.epoch->unstarted;
}

// A run is over, whatever became of it; so is its copy with the last.
void CudaCopies::done(const Run& run, const std::string& why, bool device) {
  Copy& copy = *run.copy;
  if (run.block != nullptr) {
    if (why.empty()) copy.held += run.block->held;
    pool_->unuse(*run.block);
    early_held_ -= copy.lane == Lane::prefetch;
  }
  if (copy.why.empty() && !why.empty()) {
    copy.why = why;
    copy.device = device;
  }
  if (--copy.unlanded > 0) return;
  const Nanos now = LaneQueue::now();
  if (copy.moving) {
    if (copy.why.empty()) {
      meter_.landed(copy.lane, copy.held, now);
    } else {
      meter_.failed(copy.lane, now);
    }
  }
  if (copy.why.empty()) {
    tickets_.land(copy.ticket);
  } else {
    tickets_.fail(copy.ticket, copy.why, copy.device);
  }
  copies_.erase(copy.ticket);
  settled_.notify_all();
}

// After an error: if the device answers with errors from now on, everything fails.
void CudaCopies::look_for_loss(const std::string& sentence) {
  if (!lost_.empty()) return;
  const int code = api_.stream_query(link(Lane::demand).stream.get());
  if (code != kCudaSuccess && code != kCudaNotReady) lose(sentence);
}

void CudaCopies::lose(const std::string& sentence) {
  lost_ = sentence + " The device is lost to this process: start it again to go on.";
  std::vector<Run> over;
  for (Link& l : links_) {
    over.insert(over.end(), l.waiting.begin(), l.waiting.end());
    l.waiting.clear();
    for (Epoch& epoch : l.epochs) {
      over.insert(over.end(), epoch.ready.begin(), epoch.ready.end());
      epoch.ready.clear();
      epoch.behind.clear();
    }
  }
  for (const Run& run : over) {  // those being read end with their read
    started(run);
    done(run, lost_, true);
  }
  while (!marks_.empty()) end_mark(marks_.begin(), lost_);
  settled_.notify_all();
}

// The thread of one lane.
void CudaCopies::land_flights(Lane lane) {
  Lock lock(mutex_);
  Link& l = link(lane);
  for (;;) {
    l.flying.wait(lock, [&] { return stopped_ || !l.flights.empty(); });
    if (l.flights.empty()) return;
    void* event = l.flights.front().event;
    lock.unlock();
    int code = event == nullptr ? kCudaNotReady : api_.event_synchronize(event);
    // Until the device has said so, its memory and the block are not free.
    if (code != kCudaSuccess) code = api_.stream_synchronize(l.stream.get());
    lock.lock();
    const Flight flight = std::move(l.flights.front());
    l.flights.pop_front();
    if (event != nullptr) events_.give_back(event);
    if (code != kCudaSuccess && lost_.empty()) {
      lose(cuda_sentence(api_, code, "waiting for a copy to the device"));
    }
    if (flight.last) done(flight.run, lost_.empty() ? flight.why : lost_, true);
    pump();
  }
}

}  // namespace prophet
