#include "transfer/mover.h"

#include <algorithm>

#include "core/error.h"
#include "transfer/reconcile.h"

namespace prophet {
namespace {

MoverOptions whole_chunks(MoverOptions options, std::uint64_t unit) {
  options.chunk_bytes = std::max(options.chunk_bytes / unit * unit, unit);
  return options;
}

}  // namespace

Mover::Mover(const WeightStore& store, Backend& backend, Cache& cache, std::span<std::byte> arena,
             Recorder& recorder, MoverOptions options)
    : store_(store),
      backend_(backend),
      cache_(cache),
      arena_(arena),
      recorder_(recorder),
      options_(whole_chunks(options, backend.alignment())),
      stager_(store, backend, options_.chunk_bytes, options_.prefetch_chunks),
      unused_(store.geometry().total(), 0),
      displaced_(store.geometry().total(), false) {}

Mover::Transfer* Mover::find(ExpertKey key) {
  auto at = std::find_if(moving_.begin(), moving_.end(),
                         [&](const Transfer& transfer) { return transfer.key == key; });
  return at == moving_.end() ? nullptr : &*at;
}

const Mover::Transfer* Mover::find(ExpertKey key) const {
  return const_cast<Mover*>(this)->find(key);
}

bool Mover::start(ExpertKey key, Lane lane, const std::optional<Cache::Placement>& placement) {
  if (!placement) return false;
  const Geometry& g = store_.geometry();
  // A demand for an expert that only a wish had displaced would not have needed a slot: what leaves
  // for it would have stayed.
  const bool for_a_wish = lane == Lane::prefetch || displaced_[g.index(key)];
  if (displaced_[g.index(key)]) {
    displaced_[g.index(key)] = false;
    std::erase(displaced_in_order_, key);
  }
  if (placement->evicted) {
    evicted(*placement->evicted);
    if (for_a_wish) {
      displaced_[g.index(*placement->evicted)] = true;
      displaced_in_order_.push_back(*placement->evicted);
    }
  }
  if (!for_a_wish) forget_displaced();
  cache_.loading(key);
  Transfer transfer;
  transfer.key = key;
  transfer.slot = placement->slot;
  transfer.lane = lane;
  transfer.foreseen = lane == Lane::prefetch;
  transfer.begin = backend_.now();
  moving_.push_back(std::move(transfer));
  return true;
}

void Mover::evicted(ExpertKey key) {
  const Nanos now = backend_.now();
  recorder_.record({now, now, EventKind::evicted, key, 0});
  std::uint64_t& unused = unused_[store_.geometry().index(key)];
  if (unused > 0) {
    recorder_.record({now, now, EventKind::prefetch_wasted, key, unused});
    recorder_.record({now, now, EventKind::evicted_unused, key, 0});
    unused = 0;
  }
}

void Mover::forget_displaced() {
  if (displaced_in_order_.empty()) return;
  displaced_[store_.geometry().index(displaced_in_order_.front())] = false;
  displaced_in_order_.pop_front();
}

bool Mover::clear(Transfer& transfer) {
  if (!transfer.clear) transfer.clear = !may_overwrite_ || may_overwrite_(transfer.slot);
  return transfer.clear;
}

bool Mover::start_chunk(Transfer& transfer) {
  const auto extents = store_.where(transfer.key);
  if (transfer.cancelled || transfer.extent == extents.size() || !clear(transfer)) return false;
  const Extent& extent = extents[transfer.extent];
  Extent chunk = extent;
  chunk.offset += transfer.done;
  chunk.bytes = std::min(options_.chunk_bytes, extent.bytes - transfer.done);
  std::byte* to = arena_.data() + store_.place(transfer.slot, extent.at, cache_.slots());
  const Ticket ticket = backend_.copy(transfer.lane, to + transfer.done, chunk);
  transfer.chunks.emplace_back(ticket, chunk.bytes);
  transfer.done += chunk.bytes;
  if (transfer.done == extent.bytes) {
    ++transfer.extent;
    transfer.done = 0;
  }
  return true;
}

void Mover::start_all_chunks(Transfer& transfer) {
  while (start_chunk(transfer)) {
  }
}

bool Mover::demand(ExpertKey key) {
  stager_.forget(key);
  if (Transfer* transfer = find(key)) {
    // On its way: what a failed chunk left behind cannot be mended, the rest is promoted.
    if (!transfer->error.empty()) return false;
    transfer->cancelled = false;
    if (transfer->lane == Lane::prefetch) {
      overtaken_bytes_ += started(*transfer);
      forget_displaced();
    }
    transfer->lane = Lane::demand;
    start_all_chunks(*transfer);
    return true;
  }
  if (!start(key, Lane::demand, cache_.admit(key))) return false;
  start_all_chunks(moving_.back());
  return true;
}

void Mover::make_way(const std::function<bool(ExpertKey)>& in_the_way) {
  Transfer* youngest = nullptr;
  for (Transfer& transfer : moving_) {
    if (transfer.lane != Lane::prefetch || !in_the_way(transfer.key)) continue;
    if (!clear(transfer)) continue;                           // its slot is nobody's yet
    if (transfer.cancelled || all_started(transfer)) return;  // it ends by itself
    youngest = &transfer;
  }
  if (youngest != nullptr) youngest->cancelled = true;
}

void Mover::want(std::span<const Prefetch> wanted) {
  std::vector<Prefetch> fast, staging;
  for (const Prefetch& wish : wanted) {
    if (wish.reach == Reach::fast) {
      fast.push_back(wish);
    } else if (cache_.state(wish.key) == Residency::absent) {
      staging.push_back(wish);
    }
  }
  stager_.want(staging);
  std::vector<ExpertKey> prefetching;
  for (const Transfer& transfer : moving_) {
    if (transfer.lane == Lane::prefetch) prefetching.push_back(transfer.key);
  }
  Reconciled plan =
      reconcile(fast, prefetching, [this](ExpertKey key) { return cache_.state(key); });
  for (ExpertKey key : plan.cancel) find(key)->cancelled = true;
  for (ExpertKey key : plan.resume) {
    if (find(key)->error.empty()) find(key)->cancelled = false;
  }
  wishes_ = std::move(plan.start);
  std::reverse(wishes_.begin(), wishes_.end());
  for (const Prefetch& wish : fast) {
    cache_.policy().foreseen(wish.key, wish.confidence, wish.deadline);
  }
}

int Mover::prefetch_chunks_in_flight() const {
  int count = 0;
  for (const Transfer& transfer : moving_) {
    if (transfer.lane == Lane::prefetch) count += static_cast<int>(transfer.chunks.size());
  }
  return count;
}

void Mover::start_wishes() {
  if (!prefetching()) return;
  int free = options_.prefetch_chunks - prefetch_chunks_in_flight();
  for (const Transfer& transfer : moving_) {
    free -= transfer.lane == Lane::prefetch && !transfer.clear;  // held back: a chunk soon
  }
  for (Transfer& transfer : moving_) {
    if (transfer.lane != Lane::prefetch) continue;
    while (free > 0 && start_chunk(transfer)) --free;
  }
  while (free > 0 && !wishes_.empty()) {
    const Prefetch wish = wishes_.back();
    wishes_.pop_back();
    if (cache_.state(wish.key) != Residency::absent) continue;  // a demand was faster
    // Where no slot is worth less, the wish is dropped.
    if (!start(wish.key, Lane::prefetch, cache_.admit_wish(wish))) continue;
    while (free > 0 && start_chunk(moving_.back())) --free;
    free -= !moving_.back().clear;
  }
  stager_.start();
}

bool Mover::landed(Transfer& transfer, const Chunk& chunk) {
  try {
    if (!backend_.poll(chunk.first)) return false;
    transfer.moved += chunk.second;
    return true;
  } catch (const ReadError& error) {
    failed(transfer, error.what(), false);
  } catch (const DeviceError& error) {
    failed(transfer, error.what(), true);
  }
  return true;
}

void Mover::failed(Transfer& transfer, const std::string& why, bool device) {
  transfer.cancelled = true;
  if (!transfer.error.empty()) return;
  transfer.error = why;
  transfer.device = device;
}

void Mover::poll(Transfer& transfer) {
  std::vector<Chunk>& chunks = transfer.chunks;
  if (!all_started(transfer)) {
    std::erase_if(chunks, [&](const Chunk& chunk) { return landed(transfer, chunk); });
    return;
  }
  // Nothing follows before all have landed, so one that has not is reason enough to stop looking;
  // the youngest is the likeliest.
  while (!chunks.empty() && landed(transfer, chunks.back())) chunks.pop_back();
}

std::uint64_t Mover::started(const Transfer& transfer) const {
  std::uint64_t bytes = transfer.moved;
  for (const Chunk& chunk : transfer.chunks) bytes += chunk.second;
  return bytes;
}

bool Mover::all_started(const Transfer& transfer) const {
  return transfer.extent == store_.where(transfer.key).size();
}

void Mover::finish(const Transfer& transfer, std::vector<Ending>& ended) {
  const Nanos now = backend_.now();
  const ExpertKey key = transfer.key;
  const auto span =
      transfer.lane == Lane::demand ? EventKind::read_demand : EventKind::read_prefetch;
  if (!transfer.error.empty() || !all_started(transfer)) {
    recorder_.record({now, now, EventKind::cancelled, key, transfer.moved});
    cache_.abandon(key);
    if (!transfer.error.empty()) {
      recorder_.record({now, now, EventKind::failed, key, 0});
      ended.push_back({key, transfer.error, transfer.device});
    }
    return;
  }
  recorder_.record({transfer.begin, now, span, key, transfer.moved});
  if (transfer.lane == Lane::prefetch) {
    unused_[store_.geometry().index(key)] = transfer.moved;
  } else if (transfer.foreseen) {
    recorder_.record({now, now, EventKind::prefetch_late, key, transfer.moved});
  }
  cache_.landed(key);
  ended.push_back({key, {}});
}

void Mover::collect(std::vector<Ending>& out) {
  stager_.collect();
  if (moving_.empty()) return;
  for (Transfer& transfer : moving_) {
    if (!transfer.clear && transfer.lane == Lane::demand) start_all_chunks(transfer);
    poll(transfer);
  }
  std::erase_if(moving_, [&](Transfer& transfer) {
    if (!clear(transfer)) return false;
    if (!transfer.chunks.empty() || !(transfer.cancelled || all_started(transfer))) return false;
    finish(transfer, out);
    return true;
  });
}

void Mover::tickets(ExpertKey key, std::vector<Ticket>& out) const {
  const Transfer* transfer = find(key);
  if (transfer == nullptr || transfer->chunks.empty()) return;
  if (all_started(*transfer)) return out.push_back(transfer->chunks.back().first);
  for (const Chunk& chunk : transfer->chunks) out.push_back(chunk.first);
}

bool Mover::prefetching() const {
  return !wishes_.empty() || stager_.active() ||
         std::any_of(moving_.begin(), moving_.end(),
                     [](const Transfer& t) { return t.lane == Lane::prefetch; });
}

void Mover::prefetch_tickets(std::vector<Ticket>& out) const {
  stager_.tickets(out);
  for (const Transfer& transfer : moving_) {
    if (transfer.lane != Lane::prefetch) continue;
    for (const auto& chunk : transfer.chunks) out.push_back(chunk.first);
  }
}

void Mover::moving(std::vector<ExpertKey>& out) const {
  for (const Transfer& transfer : moving_) out.push_back(transfer.key);
}

bool Mover::used(ExpertKey key) {
  std::uint64_t& unused = unused_[store_.geometry().index(key)];
  if (unused == 0) return false;
  const Nanos now = backend_.now();
  recorder_.record({now, now, EventKind::prefetch_used, key, unused});
  unused = 0;
  forget_displaced();  // without the wish a demand would have needed a slot now
  return true;
}

bool Mover::displaced(ExpertKey key) const { return displaced_[store_.geometry().index(key)]; }

std::uint64_t Mover::unused_bytes() const {
  std::uint64_t sum = 0;
  for (std::uint64_t bytes : unused_) sum += bytes;
  return sum;
}

}  // namespace prophet
