#include "engine/engine.h"

#include <algorithm>

#include "core/error.h"
#include "engine/device_road.h"
#include "engine/scratch.h"

namespace prophet {
namespace {

std::string name(ExpertKey key) {
  return "expert " + std::to_string(key.expert) + " of layer " + std::to_string(key.layer);
}

}  // namespace

Engine::Engine(std::shared_ptr<const WeightStore> store, std::shared_ptr<Backend> backend,
               EngineOptions options, std::unique_ptr<Predictor> predictor)
    : store_(std::move(store)),
      backend_(std::move(backend)),
      options_(std::move(options)),
      recorder_(options_.timeline_events, options_.watcher),
      cache_(store_->geometry(), options_.slots, options_.pool,
             options_.make_policy ? options_.make_policy(store_->geometry())
                                  : make_eviction_policy(options_.policy, store_->geometry())),
      arena_(backend_->fast_memory(std::uint64_t(cache_.slots()) * store_->slot_bytes())),
      mover_(*store_, *backend_, cache_, arena_, recorder_, options_.mover),
      pool_(std::max(1, options_.threads)),
      scratch_(std::make_unique<Scratch>(store_->geometry())),
      device_(options_.device.api ? std::make_unique<DeviceRoad>(options_.device) : nullptr) {
  if (predictor) {
    const bool ahead = options_.prefetch.last > 0;
    foresight_ = std::make_unique<Foresight>(
        std::move(predictor), geometry(), options_.background, ahead,
        options_.trust_blindly
            ? nullptr
            : std::make_unique<Shadow>(geometry(), cache_.slots(), options_.pool),
        // Without the mutex, whose holder may be waiting for this worker: a word that comes just
        // before the prefetch thread sleeps is heard at the next call.
        [this] { wake_.notify_one(); });
    if (ahead) {
      const double chunk = double(options_.mover.chunk_bytes) / double(store_->slot_bytes());
      planner_ = std::make_unique<Planner>(geometry(), options_.prefetch, chunk);
    }
  }
  if (options_.background) prefetcher_ = std::thread([this] { prefetch_thread(); });
}

Engine::~Engine() {
  close();
  foresight_.reset();  // its worker wakes the prefetch thread
}

void Engine::close() {
  {
    Lock lock(mutex_);
    closed_ = true;
    wake_.notify_all();
  }
  if (prefetcher_.joinable()) prefetcher_.join();
  give_up_hits();
  // A forward that runs elsewhere ends before its memory may go, and so does what it queued.
  std::lock_guard<std::mutex> step(step_mutex_);
  Lock lock(mutex_);
  while (wait_for_device(lock)) {
  }
  hits_.reset();
}

void Engine::open_or_throw() const {
  if (closed_) throw StateError("the engine is closed: load the model again to go on");
}

std::int32_t Engine::pool_slots(std::int32_t layer) const { return cache_.pool_slots(layer); }

Residency Engine::state(ExpertKey key) const {
  if (!geometry().contains(key)) throw InvalidArgument("there is no " + name(key));
  Lock lock(mutex_);
  return cache_.state(key);
}

void Engine::record(EventKind kind, Nanos begin, Nanos end, ExpertKey key, std::uint64_t bytes) {
  recorder_.record({begin, end, kind, key, bytes});
}

std::int32_t Engine::step(std::int32_t layer, std::int32_t tokens,
                          std::span<const std::int32_t> counts) {
  Lock lock(mutex_);
  const bool streams = begin_step(layer, tokens, counts);
  const Nanos now = backend_->now();
  record(EventKind::layer_step, now, now, {layer, -1});  // its end is the caller's affair
  return streams ? cache_.transient_slots(layer) : cache_.pool_slots(layer);
}

void Engine::set_streaming(bool may) {
  Lock lock(mutex_);
  options_.stream = may;
}

bool Engine::streaming() const {
  Lock lock(mutex_);
  return options_.stream;
}

bool Engine::begin_step(std::int32_t layer, std::int32_t tokens,
                        std::span<const std::int32_t> counts) {
  open_or_throw();
  if (!geometry().contains({layer, 0})) {
    throw InvalidArgument("there is no MoE layer " + std::to_string(layer));
  }
  if (foresight_) foresight_->settle(cache_.policy());
  if (!counts.empty() && std::ssize(counts) != geometry().experts_per_layer) {
    throw InvalidArgument("a layer step counts the tokens of each of " +
                          std::to_string(geometry().experts_per_layer) + " experts, not of " +
                          std::to_string(counts.size()));
  }
  const bool streams = options_.stream && options_.keep && exceeds_share(layer, tokens, counts);
  if (streams) {
    shares_.resize(counts.size());
    for (std::size_t e = 0; e < counts.size(); ++e) shares_[e] = float(counts[e]) / float(tokens);
    cache_.stream(layer, shares_);
    ++streamed_steps_;
  } else {
    cache_.tick(layer);
  }
  ++ticks_;
  if (!planner_) return streams;
  planner_->tick();
  planner_->paid(double(mover_.overtaken_bytes() - overtaken_) / double(store_->slot_bytes()));
  overtaken_ = mover_.overtaken_bytes();
  replan_ = true;
  if (layer == 0) measure_pace();
  return streams;
}

// One token's experts are what the slots are for, however few those are.
bool Engine::exceeds_share(std::int32_t layer, std::int32_t tokens,
                           std::span<const std::int32_t> counts) const {
  if (tokens < 2) return false;
  const auto distinct = std::count_if(counts.begin(), counts.end(), [](auto n) { return n > 0; });
  const std::int64_t pool = cache_.pool_slots(layer);
  return distinct > (options_.pool == PoolScope::global ? pool / geometry().layers : pool);
}

void Engine::collect() {
  ended_.clear();
  mover_.collect(ended_);
  for (const Mover::Ending& ending : ended_) {
    if (ending.error.empty()) list(ending.key);
    for (Lease* lease : live_) {
      for (Lease::Entry& entry : lease->entries) {
        if (entry.key != ending.key || entry.status != Lease::Status::waiting) continue;
        if (ending.error.empty()) {
          cache_.lease(entry.key);
          entry.slot = cache_.slot(entry.key);
          entry.status = Lease::Status::held;
        } else {
          entry.error = ending.error;
          entry.device = ending.device;
          entry.status = Lease::Status::failed;
        }
      }
    }
  }
}

void Engine::demand(Lock& lock, ExpertKey key) {
  // Time passes while it waits: another lease, or a wish, may have brought the expert.
  const auto here = [&] {
    const Residency state = cache_.state(key);
    return state == Residency::resident || state == Residency::leased;
  };
  const auto waited = [&](ExpertKey other) {
    return std::any_of(live_.begin(), live_.end(), [&](const Lease* lease) {
      return std::any_of(lease->entries.begin(), lease->entries.end(), [&](const auto& entry) {
        return entry.key == other && entry.key != key && entry.status == Lease::Status::waiting;
      });
    });
  };
  const auto in_the_way = [&](ExpertKey other) {
    return (options_.pool == PoolScope::global || other.layer == key.layer) && !waited(other);
  };
  while (!here() && !mover_.demand(key)) {
    // Every slot is leased or loading. A prefetch that nobody waits for gives up its slot at once
    // where no chunk of it is in flight; what else loads without a waiter will free its slot.
    mover_.make_way(in_the_way);
    collect();
    if (here() || mover_.demand(key)) return;
    std::vector<ExpertKey> moving;
    std::vector<Ticket> tickets;
    mover_.moving(moving);
    for (ExpertKey other : moving) {
      if (!waited(other)) mover_.tickets(other, tickets);
    }
    if (tickets.empty()) {
      if (wait_for_device(lock)) continue;
      throw StateError("no slot for " + name(key) + ": other leases hold all " +
                       std::to_string(cache_.pool_slots(key.layer)) +
                       " slots of its pool; release one first or load with more slots");
    }
    lock.unlock();
    backend_->wait_any(tickets);
    lock.lock();
    open_or_throw();
    collect();
  }
}

void Engine::lease(std::int32_t layer, std::span<const std::int32_t> experts, Lease& lease) {
  if (hits_) {
    std::lock_guard<std::mutex> step(step_mutex_);
    quiesce();
  }
  Lock lock(mutex_);
  lease_locked(lock, layer, experts, lease);
}

void Engine::lease_locked(Lock& lock, std::int32_t layer, std::span<const std::int32_t> experts,
                          Lease& lease) {
  open_or_throw();
  if (lease.live) throw StateError("this lease is still in use: release it first");
  lease.entries.resize(experts.size());
  for (std::size_t i = 0; i < experts.size(); ++i) {
    const ExpertKey key{layer, experts[i]};
    if (!geometry().contains(key)) throw InvalidArgument("there is no " + name(key));
    lease.entries[i] = {key, Lease::Status::waiting, false, false, -1, {}};
    // Linear: one call names few experts, and the flat scan costs less than a set.
    for (std::size_t j = 0; j < i; ++j) {
      if (experts[j] == experts[i]) throw InvalidArgument(name(key) + " is named twice in a lease");
    }
  }
  if (static_cast<std::int32_t>(experts.size()) > cache_.pool_slots(layer)) {
    throw InvalidArgument("a lease of " + std::to_string(experts.size()) + " experts exceeds the " +
                          std::to_string(cache_.pool_slots(layer)) +
                          " slots of the layer's pool: split it");
  }
  collect();
  release_passed();
  lease.live = true;
  live_.push_back(&lease);
  try {
    admit(lock, lease);
    start_wishes();  // after the demands: a wish takes no slot they need
  } catch (...) {
    release_locked(lease);
    throw;
  }
}

void Engine::admit(Lock& lock, Lease& lease) {
  const Nanos now = backend_->now();
  bool absent = false;
  // First what is here, so that nothing of this lease becomes the victim of the rest of it.
  for (Lease::Entry& entry : lease.entries) {
    const Residency state = cache_.state(entry.key);
    const std::uint64_t bytes = store_->expert_bytes(entry.key);
    if (state == Residency::resident || state == Residency::leased) {
      record(EventKind::hit, now, now, entry.key, bytes);
      cache_.lease(entry.key);
      cache_.used(entry.key);
      if (mover_.used(entry.key) && planner_) planner_->paid(1);
      entry.slot = cache_.slot(entry.key);
      entry.status = Lease::Status::held;
      entry.hit = true;
    } else {
      entry.coming = state != Residency::absent;
      absent = absent || !entry.coming;
      if (planner_ && mover_.displaced(entry.key)) planner_->regretted();
      record(entry.coming ? EventKind::in_flight : EventKind::miss, now, now, entry.key, bytes);
    }
  }
  if (absent && planner_ && mover_.prefetch_on_link()) planner_->delayed();
  for (Lease::Entry& entry : lease.entries) {
    if (entry.hit) continue;
    // Waiting for a slot lets time pass: what was on its way may have landed or failed meanwhile.
    if (entry.status == Lease::Status::waiting) demand(lock, entry.key);
    if (entry.status != Lease::Status::failed) cache_.used(entry.key);
  }
}

void Engine::wait_for_change(Lock& lock, Lease& lease) {
  std::vector<Ticket>& tickets = lease.tickets;
  tickets.clear();
  for (const Lease::Entry& entry : lease.entries) {
    if (entry.status == Lease::Status::waiting) mover_.tickets(entry.key, tickets);
  }
  const Nanos begin = backend_->now();
  lock.unlock();
  backend_->wait_any(tickets);
  lock.lock();
  record(EventKind::stall, begin, backend_->now(), {lease.entries.front().key.layer, -1});
  collect();
  start_wishes();
}

std::int32_t Engine::wait(Lease& lease, std::int32_t expert) {
  Lock lock(mutex_);
  open_or_throw();
  auto entry = std::find_if(lease.entries.begin(), lease.entries.end(),
                            [&](const Lease::Entry& e) { return e.key.expert == expert; });
  if (!lease.live || entry == lease.entries.end()) {
    throw InvalidArgument("expert " + std::to_string(expert) + " is not part of this lease");
  }
  collect();
  while (entry->status == Lease::Status::waiting) {
    wait_for_change(lock, lease);
    open_or_throw();
  }
  if (entry->status == Lease::Status::failed) throw_failure(*entry);
  return entry->slot;
}

void Engine::wait_any(Lease& lease) {
  Lock lock(mutex_);
  open_or_throw();
  const auto waiting = [&] {
    return std::count_if(lease.entries.begin(), lease.entries.end(), [](const Lease::Entry& entry) {
      return entry.status == Lease::Status::waiting;
    });
  };
  const auto before = waiting();
  if (!lease.live || before == 0) return;
  collect();
  while (waiting() == before) {
    wait_for_change(lock, lease);
    open_or_throw();
  }
}

void Engine::release(Lease& lease) {
  Lock lock(mutex_);
  release_locked(lease);
}

void Engine::release_locked(Lease& lease) {
  if (!lease.live) return;
  lease.live = false;
  std::erase(live_, &lease);
  for (const Lease::Entry& entry : lease.entries) {
    if (entry.status != Lease::Status::held) continue;
    cache_.release(entry.key);
    if (!options_.keep && cache_.state(entry.key) == Residency::resident) cache_.drop(entry.key);
  }
  plan_wishes();
  if (!mover_.prefetching()) return;
  mover_.start_wishes();  // a slot may have become free for a wish
  wake_.notify_all();
}

void Engine::want(std::span<const Prefetch> wanted) {
  Lock lock(mutex_);
  open_or_throw();
  for (const Prefetch& wish : wanted) {
    if (!geometry().contains(wish.key)) throw InvalidArgument("there is no " + name(wish.key));
  }
  mover_.want(wanted);
  collect();
  mover_.start_wishes();
  wake_.notify_all();
}

bool Engine::progress() {
  Lock lock(mutex_);
  open_or_throw();
  plan_wishes();
  if (!mover_.prefetching()) return false;
  collect();
  mover_.start_wishes();
  return mover_.prefetching();
}

void Engine::reveal(std::span<const ExpertKey> keys, std::span<const std::int64_t> when) {
  Lock lock(mutex_);
  for (std::size_t i = 0; i < keys.size(); ++i) cache_.policy().reveal(keys[i], when[i]);
}

void Engine::prefetch_thread() {
  Lock lock(mutex_);
  std::vector<Ticket> tickets;
  while (!closed_) {
    const bool served = hits_ && serve_reports(lock);
    collect();
    start_wishes();
    if (hits_) {
      if (!served) doze(lock);
      continue;
    }
    tickets.clear();
    mover_.prefetch_tickets(tickets);
    if (tickets.empty()) {  // nothing moves, or no slot is free for what is wished
      wake_.wait(lock);
      continue;
    }
    lock.unlock();
    backend_->wait_any(tickets);
    lock.lock();
  }
}

Counters Engine::counters() const {
  Lock lock(mutex_);
  auto total = [&](EventKind kind) -> const Totals& { return recorder_.totals(kind); };
  Counters c{};
  c.bytes_prefetch_late = total(EventKind::prefetch_late).bytes;
  c.bytes_demand = total(EventKind::read_demand).bytes - c.bytes_prefetch_late;
  c.bytes_prefetch_used = total(EventKind::prefetch_used).bytes;
  c.bytes_prefetch_wasted = total(EventKind::prefetch_wasted).bytes;
  c.bytes_prefetch_unused = mover_.unused_bytes();
  c.bytes_cancelled = total(EventKind::cancelled).bytes;
  c.bytes_moved = total(EventKind::read_demand).bytes + total(EventKind::read_prefetch).bytes +
                  c.bytes_cancelled;
  const StagingStats staging = backend_->staging();
  c.bytes_staged = staging.read[0].bytes + staging.read[1].bytes;
  c.bytes_found_staged = staging.found_bytes;
  c.hits_resident = total(EventKind::hit).count;
  c.hits_in_flight = total(EventKind::in_flight).count;
  c.misses = total(EventKind::miss).count;
  c.evictions = total(EventKind::evicted).count;
  c.evicted_before_use = total(EventKind::evicted_unused).count;
  c.layer_steps = total(EventKind::layer_step).count;
  c.waves = total(EventKind::wave).count;
  c.reads = total(EventKind::read_demand).count + total(EventKind::read_prefetch).count;
  c.reads_failed = total(EventKind::failed).count;
  c.expert_bytes_routed = total(EventKind::hit).bytes + total(EventKind::in_flight).bytes +
                          total(EventKind::miss).bytes;
  c.stall_ns = total(EventKind::stall).time;
  c.compute_ns = total(EventKind::compute).time;
  c.busy_ns = backend_->busy();
  c.now_ns = backend_->now();
  c.streamed_steps = streamed_steps_;
  if (foresight_) {
    c.foresight_steps = foresight_->observations();
    c.foresight_ns = foresight_->time();
  }
  if (foresight_) c.foresight_held_steps = foresight_->distrusted();
  if (planner_) c.prefetch_held_steps = planner_->steps_held();
  return c;
}

std::vector<Event> Engine::timeline() const {
  Lock lock(mutex_);
  return recorder_.timeline();
}

}  // namespace prophet
