// The hit path from the engine's side: forward queues a layer and returns; the background thread
// reads what the device reports, tells policies and predictor, and brings what is missing.
#include <algorithm>
#include <chrono>
#include <deque>
#include <thread>
#include <utility>

#include "core/error.h"
#include "engine/device_road.h"
#include "engine/hit_path_host.h"
#include "engine/scratch.h"

namespace prophet {
namespace {

// Between two looks at the ring. To sleep takes the processor 15 us and returns 90 us later; what
// comes sooner is better watched for.
constexpr auto kWatch = std::chrono::microseconds(20), kLook = std::chrono::microseconds(20);

using MaybeForecaster = std::unique_ptr<DeviceForecaster>;

}  // namespace

// What serving reports needs besides.
struct Engine::HitService {
  HitService(const DeviceTables& tables, const Geometry& geometry, std::int32_t slots,
             std::int32_t hidden_width, MaybeForecaster device)
      : forecaster(std::move(device)),
        host(tables, geometry, slots, kCudaFfnTokens * geometry.top_k, hidden_width,
             forecaster.get()),
        seen(geometry.experts_per_layer, 0) {}

  const MaybeForecaster forecaster;  // null: the host forecasts
  HitPathHost host;
  Lease lease;
  std::vector<char> seen;  // [experts_per_layer] 1: asked for, 2: and found
  std::vector<std::int32_t> experts;
  std::vector<std::int32_t> counts;  // [experts_per_layer] pairs
  std::exception_ptr failure;        // not told yet
  // Whose rows they are (Engine::streams), of calls not served yet, oldest first. Once a graph
  // makes calls too, their numbers are not known beforehand, and all rows are one sequence's.
  struct Rows {
    std::uint64_t call;
    std::vector<std::int64_t> streams;
  };
  std::deque<Rows> rows;
  bool watch = false;  // a call was begun or a report read: the next is near
};

void Engine::HitServiceDelete::operator()(HitService* service) const { delete service; }

void Engine::open_hit_path() {
  if (!device_ || !options_.hit_path || !options_.background || !options_.keep) return;
  const bool sees = foresight_ && foresight_->hidden_width() == std::size_t(ffn_.shape.hidden);
  const std::int32_t hidden = sees ? ffn_.shape.hidden : 0;
  MaybeForecaster forecaster;
  forecasts_lack_ = "nobody asks for it";
  if (options_.device_forecasts && foresight_) {
    BankPredictor* const bank = foresight_->bank();
    try {
      if (!bank) throw InvalidArgument("the predictor is not the learned forecaster");
      forecaster = std::make_unique<DeviceForecaster>(options_.device, *bank, hidden);
      forecasts_lack_.clear();
    } catch (const InvalidArgument& error) {
      forecasts_lack_ = error.what();
    }
  }
  hits_.reset(
      new HitService(options_.device, geometry(), cache_.slots(), hidden, std::move(forecaster)));
  for (std::int32_t index = 0; index < geometry().total(); ++index) {
    const ExpertKey key = geometry().key(index);
    const Residency state = cache_.state(key);
    if (state == Residency::resident || state == Residency::leased) list(key);
  }
  mover_.ask_before_overwriting(
      [this](std::int32_t slot) { return !hits_ || hits_->host.may_overwrite(slot); });
  wake_.notify_all();
}

void Engine::list(ExpertKey key) {
  if (!hits_) return;
  const std::int32_t slot = cache_.slot(key);
  hits_->host.list(geometry().index(key), slot, addresses(key, slot));
}

// A call that the slots are sure to hold, whatever the router says.
bool Engine::fits_hit_path(std::int32_t layer, const LayerBatch& batch) const {
  if (!hits_ || layer < 0 || layer >= geometry().layers) return false;
  const std::int64_t pairs = std::int64_t(batch.tokens) * batch.top_k;
  return batch.top_k <= kCudaTopK && pairs <= hits_->host.pairs() &&
         std::min<std::int64_t>(pairs, geometry().experts_per_layer) <= cache_.pool_slots(layer);
}

std::string Engine::device_forecasts_lack() const {
  Lock lock(mutex_);
  return forecasts_lack_;
}

void Engine::tell_hit_failure() {
  if (hits_ && hits_->failure) std::rethrow_exception(std::exchange(hits_->failure, nullptr));
}

void Engine::forward_by_hits(std::int32_t layer, const LayerBatch& batch) {
  DeviceRoad& d = *device_;
  HitPathHost& host = hits_->host;
  const std::size_t hidden = ffn_.shape.hidden;
  for (std::int64_t i = 0; !batch.on_device && i < std::int64_t(batch.tokens) * batch.top_k; ++i) {
    if (batch.ids[i] < 0) throw InvalidArgument("expert ids must not be negative");
  }
  d.use();
  d.enter(batch);
  LayerBatch here, there = batch;
  if (!batch.on_device) d.bring(batch, hidden, here, there);
  HitPathCall call{};
  call.forecasts = forecast_there(batch);
  call.layer = layer;
  call.tokens = batch.tokens;
  call.top_k = batch.top_k;
  call.hidden = ffn_.shape.hidden;
  call.io = static_cast<std::uint8_t>(batch.dtype);
  call.routing_type = static_cast<std::uint8_t>(batch.weights_dtype);
  call.x = there.x;
  call.ids = there.ids;
  call.routing = there.weights;
  call.out = there.out;
  CudaFfnCall experts = d.call(ffn_.shape, geometry().experts_per_layer, there, 0, batch.tokens);
  {
    Lock lock(mutex_);
    open_or_throw();
    tell_hit_failure();
    const std::uint64_t number = host.begin_launch(batch.captured);
    hits_->watch = true;
    std::erase_if(hits_->rows, [&](const auto& rows) { return rows.call == number; });  // it failed
    if (host.captured()) {
      hits_->rows.clear();
    } else if (streams_.size() == std::size_t(batch.tokens)) {
      hits_->rows.push_back({number, streams_});
    }
    wake_.notify_all();
  }
  host.launch(call, experts, d.stream, batch.captured);
  d.give_back(batch, there, hidden);
  if (batch.on_device) return;
  Lock lock(mutex_);
  tell_hit_failure();
}

void Engine::quiesce() {
  if (!hits_) return;
  DeviceForecaster* const forecaster = hits_->forecaster.get();
  const bool there = forecaster && forecaster->here();
  {
    Lock lock(mutex_);
    if (hits_->host.captured()) {
      throw StateError(
          "a layer of this engine was captured into a graph: its experts can no longer be leased, "
          "nor batches served that exceed the slots; load the model again for that");
    }
    if (hits_->host.is_quiet() && !there) return;
  }
  device_->use();
  cuda_check(device_->api, device_->api.stream_synchronize(device_->stream),
             "waiting for the layers queued so far");
  Lock lock(mutex_);
  while (hits_->host.outstanding()) {
    open_or_throw();
    wake_.notify_all();
    caught_up_.wait_for(lock, kLook);
  }
  hits_->host.quiet();
  if (there) foresight_->idle([&] { forecaster->give(device_->stream); });
}

// Whether the device forecasts in this call. What has been seen moves there with the first of such
// calls, and back when several sequences share one: the kernel keeps one history.
bool Engine::forecast_there(const LayerBatch& batch) {
  DeviceForecaster* const forecaster = hits_->forecaster.get();
  if (!forecaster) return false;
  const bool wanted = streams_.empty();
  if (wanted == forecaster->here()) return wanted;
  {
    Lock lock(mutex_);
    if (batch.captured || hits_->host.captured()) return forecaster->here();
  }
  quiesce();
  if (wanted) foresight_->idle([&] { forecaster->take(device_->stream); });
  return wanted;
}

void Engine::observe_report(Lock& lock, const HitReport& report) {
  if (!foresight_) return;
  if (planner_) planner_->asked(report.layer, report.ids);
  const std::int64_t tick = planner_ ? ticks_ : 0;
  std::vector<std::int64_t> streams;
  std::deque<HitService::Rows>& rows = hits_->rows;
  while (!rows.empty() && rows.front().call < report.call) rows.pop_front();
  if (!rows.empty() && rows.front().call == report.call) streams.swap(rows.front().streams);
  lock.unlock();
  Glimpse glimpse{};
  glimpse.layer = report.layer;
  glimpse.tokens = report.tokens;
  glimpse.top_k = report.top_k;
  glimpse.experts = report.ids.data();
  glimpse.weights = report.weights.data();
  glimpse.hidden = report.hidden;
  glimpse.told = report.forecasts;
  glimpse.streams = streams.empty() ? nullptr : streams.data();
  foresight_->post(glimpse, tick);
  lock.lock();
}

// An expert that the device found; it may be leaving.
void Engine::count_hit(ExpertKey key) {
  const Nanos now = backend_->now();
  record(EventKind::hit, now, now, key, store_->expert_bytes(key));
  if (cache_.state(key) != Residency::absent) cache_.used(key);
  if (mover_.used(key) && planner_) planner_->paid(1);
}

void Engine::serve_report(Lock& lock, const HitReport& report) {
  HitService& h = *hits_;
  const Nanos begin = backend_->now();
  h.counts.assign(geometry().experts_per_layer, 0);
  for (std::size_t i = 0; i < report.ids.size(); ++i) {
    if (report.ids[i] < std::ssize(h.counts) && report.weights[i] != 0.0f)
      ++h.counts[report.ids[i]];
  }
  begin_step(report.layer, report.tokens, h.counts);
  observe_report(lock, report);
  h.experts.clear();
  for (std::size_t i = 0; i < report.ids.size(); ++i) {
    const std::int32_t id = report.ids[i];
    if (id >= geometry().experts_per_layer || report.weights[i] == 0.0f) continue;
    if (h.seen[id] == 0) h.experts.push_back(id);
    h.seen[id] = report.found[i] ? 2 : 1;
  }
  // While the device stands, what it found must stay: what the cache holds of it is leased with the
  // rest, and the slots of what is leaving are known by `stand`.
  std::erase_if(h.experts, [&](std::int32_t id) {
    const ExpertKey key{report.layer, id};
    const Residency state = cache_.state(key);
    const bool held = state == Residency::resident || state == Residency::leased;
    const bool done = h.seen[id] == 2 && (report.missing == 0 || !held);
    h.seen[id] = 0;
    if (done) count_hit(key);
    return done;
  });
  if (report.missing > 0) {
    h.host.stand(report);
    std::exception_ptr failure;
    try {
      lease_locked(lock, report.layer, h.experts, h.lease);
      land(lock, h.lease);
    } catch (const Error&) {
      failure = std::current_exception();
    }
    h.host.answer(report, failure != nullptr);
    release_locked(h.lease);
    if (failure && !h.failure) h.failure = failure;
  }
  h.host.consume(report);
  const Nanos end = backend_->now();
  record(EventKind::wave, begin, begin, {report.layer, -1});
  record(EventKind::layer_step, begin, end, {report.layer, -1});
}

bool Engine::serve_reports(Lock& lock) {
  bool any = false;
  while (!closed_) {
    const std::optional<HitReport> report = hits_->host.next();
    if (!report) break;
    any = true;
    serve_report(lock, *report);
  }
  if (any) caught_up_.notify_all();
  hits_->watch = hits_->watch || any;
  return any;
}

// Until there may be something to do.
void Engine::doze(Lock& lock) {
  HitPathHost& host = hits_->host;
  host.pump();
  if (!host.outstanding() && host.idle() && !mover_.prefetching()) {
    return wake_.wait(lock);
  }
  if (!std::exchange(hits_->watch, false)) {
    wake_.wait_for(lock, kLook);
    return;
  }
  lock.unlock();
  const auto until = std::chrono::steady_clock::now() + kWatch;
  while (!host.next() && std::chrono::steady_clock::now() < until) std::this_thread::yield();
  lock.lock();
}

void Engine::give_up_hits() {
  if (hits_) hits_->host.give_up();
}

}  // namespace prophet
