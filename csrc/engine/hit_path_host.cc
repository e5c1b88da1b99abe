#include "engine/hit_path_host.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>
#include <thread>

namespace prophet {
namespace {

constexpr std::uint64_t kReports = 64;  // calls that the device may be ahead of the host
constexpr int kPatience = 1'000'000;
constexpr std::uint64_t kNever = std::uint64_t{1} << 62;

std::uint64_t read_word(std::uint64_t& word) {
  return std::atomic_ref<std::uint64_t>(word).load(std::memory_order_acquire);
}

void write_word(std::uint64_t& word, std::uint64_t value) {
  std::atomic_ref<std::uint64_t>(word).store(value, std::memory_order_release);
}

constexpr std::size_t aligned(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

HitPathHost::HitPathHost(const DeviceTables& tables, const Geometry& geometry, std::int32_t slots,
                         std::int32_t pairs, std::int32_t hidden_width,
                         const DeviceForecaster* forecaster)
    : api_(*tables.api),
      kernels_(*tables.kernels),
      device_(tables.device),
      forecaster_(forecaster),
      mapped_(api_),
      memory_(api_),
      last_((cuda_check(api_, api_.use_device(device_), "choosing a GPU"), api_)),
      slots_(slots),
      place_(geometry.total(), -1),
      listed_(geometry.total(), 0),
      in_call_(geometry.total(), false) {
  path_.update_places = std::bit_ceil(std::max<std::uint64_t>(256, 4ull * slots));
  path_.report_places = kReports;
  path_.ids = 64;
  path_.found = path_.ids + 4 * pairs;
  path_.weights = path_.found + 4 * pairs;
  path_.hidden = path_.weights + 4 * pairs;
  path_.forecasts = path_.hidden + 4 * hidden_width;
  path_.forecast_floats = forecaster ? forecaster->floats() : 0;
  path_.forecast = forecaster ? forecaster->forecasts() : nullptr;
  path_.report_bytes = (path_.forecasts + 4ull * path_.forecast_floats + 63) / 64 * 64;
  path_.experts = geometry.experts_per_layer;
  path_.pairs = pairs;
  path_.hidden_width = hidden_width;

  const std::size_t updates = aligned(sizeof(HitPathMail));
  const std::size_t reports = updates + aligned(path_.update_places * sizeof(HitPathUpdate));
  const std::size_t mapped = reports + path_.report_places * path_.report_bytes;
  mapped_.grow(mapped, "the rings of the hit path");
  std::memset(mapped_.data(), 0, mapped);
  mail_ = mapped_.as<HitPathMail>();
  updates_ = reinterpret_cast<HitPathUpdate*>(mapped_.data() + updates);
  reports_ = mapped_.data() + reports;
  auto* const seen = mapped_.device_view();
  path_.mail = reinterpret_cast<HitPathMail*>(seen);
  path_.updates = reinterpret_cast<HitPathUpdate*>(seen + updates);
  path_.reports = seen + reports;

  const std::size_t call = aligned(geometry.total() * sizeof(CudaExpert));
  const std::size_t counters = call + aligned(path_.experts * sizeof(CudaExpert));
  memory_.grow(counters + sizeof(HitPathCounters), "the table of experts");
  path_.table = memory_.as<CudaExpert>();
  path_.call = reinterpret_cast<CudaExpert*>(memory_.data() + call);
  path_.counters = reinterpret_cast<HitPathCounters*>(memory_.data() + counters);
  const DeviceStream stream(api_);
  cuda_check(api_, api_.fill_async(memory_.data(), 0, memory_.size(), stream.get()),
             "clearing the table of experts");
  cuda_check(api_, api_.stream_synchronize(stream.get()), "clearing the table of experts");
}

HitPathHost::~HitPathHost() {
  give_up();
  (void)api_.use_device(device_);
  if (recorded_) (void)api_.event_synchronize(last_.get());
}

std::uint64_t HitPathHost::begin_launch(bool captured) {
  quiet_ = false;
  captured_ = captured_ || captured;
  return captured ? 0 : ++begun_;
}

void HitPathHost::launch(const HitPathCall& call, CudaFfnCall& experts, void* stream,
                         bool captured) {
  experts.table = path_.call;
  int code = call.forecasts ? forecaster_->queue(call, stream) : kCudaSuccess;
  if (code == kCudaSuccess) code = kernels_.route(&path_, &call, stream);
  if (code != kCudaSuccess) {
    if (!captured) --begun_;
    cuda_check(api_, code, "queueing a layer's routing");
  }
  try {
    cuda_check(api_, kernels_.expert_ffn(&experts, stream), "computing experts on the GPU");
    cuda_check(api_, kernels_.seal(&path_, &call, stream), "queueing a layer's end");
    if (!captured) {
      cuda_check(api_, api_.event_record(last_.get(), stream), "recording an event");
      recorded_ = true;
    }
  } catch (...) {
    if (!captured) ++queued_;
    throw;
  }
  if (!captured) ++queued_;
}

std::optional<HitReport> HitPathHost::next() {
  const std::uint64_t number = consumed_ + 1;
  std::byte* const at = reports_ + (number & (kReports - 1)) * path_.report_bytes;
  auto& head = *reinterpret_cast<HitPathReport*>(at);
  if (read_word(head.call) != number) return std::nullopt;
  const std::size_t count = std::size_t(head.tokens) * head.top_k;
  HitReport report{number, head.layer, head.tokens, head.top_k, head.missing, {}, {}, {}};
  report.ids = {reinterpret_cast<const std::int32_t*>(at + path_.ids), count};
  report.found = {reinterpret_cast<const std::int32_t*>(at + path_.found), count};
  report.weights = {reinterpret_cast<const float*>(at + path_.weights), count};
  if (path_.hidden_width > 0) report.hidden = reinterpret_cast<const float*>(at + path_.hidden);
  if (head.forecasts) report.forecasts = reinterpret_cast<const float*>(at + path_.forecasts);
  return report;
}

void HitPathHost::consume(const HitReport& report) {
  consumed_ = report.call;
  write_word(mail_->consumed, consumed_);
}

void HitPathHost::stand(const HitReport& report) {
  standing_ = true;
  for (std::size_t i = 0; i < report.ids.size(); ++i) {
    if (report.ids[i] >= path_.experts || !report.found[i]) continue;
    in_call_[std::size_t(report.layer) * path_.experts + report.ids[i]] = true;
  }
}

void HitPathHost::answer(const HitReport& report, bool given_up) {
  standing_ = false;
  const auto row = in_call_.begin() + std::ptrdiff_t(report.layer) * path_.experts;
  std::fill(row, row + path_.experts, false);
  // The standing device takes news as they come: what it waits for is among them.
  for (int turn = 0; turn < kPatience && !waiting_.empty(); ++turn) {
    pump();
    std::this_thread::yield();
  }
  if (given_up || !waiting_.empty()) write_word(mail_->given_up, report.call);
  write_word(mail_->answered, report.call);
}

void HitPathHost::give_up() {
  write_word(mail_->consumed, kNever);
  write_word(mail_->given_up, kNever);
  write_word(mail_->answered, kNever);
}

bool HitPathHost::write(const HitPathUpdate& update) {
  const std::uint64_t published = issued_ - waiting_.size();
  if (published - read_word(mail_->taken) >= path_.update_places) return false;
  updates_[published & (path_.update_places - 1)] = update;
  return true;
}

void HitPathHost::pump() {
  while (!waiting_.empty() && write(waiting_.front())) {
    waiting_.pop_front();
    write_word(mail_->published, issued_ - waiting_.size());
  }
}

void HitPathHost::publish(std::size_t index, const CudaExpert& expert) {
  ++issued_;
  waiting_.push_back({index, expert});
  pump();
}

void HitPathHost::list(std::size_t index, std::int32_t slot, const CudaExpert& expert) {
  publish(index, expert);
  slots_[slot].holds = std::int64_t(index);
  place_[index] = slot;
  listed_[index] = issued_;
}

bool HitPathHost::may_overwrite(std::int32_t slot) {
  Slot& s = slots_[slot];
  if (s.holds >= 0) {
    s.was = s.holds;
    s.holds = -1;
    if (place_[s.was] == slot) {
      publish(s.was, CudaExpert{});
      place_[s.was] = -1;
      s.gone = issued_;
    } else {
      s.gone = listed_[s.was];  // listed elsewhere since then
    }
  }
  if (s.was < 0) return true;
  const bool passed = quiet_ || read_word(mail_->acknowledged) >= s.gone;
  if (!passed && !(standing_ && !in_call_[s.was])) return false;
  s.was = -1;
  return true;
}

bool HitPathHost::outstanding() const { return captured_ || begun_ != consumed_; }

bool HitPathHost::idle() {
  if (quiet_) return true;
  // `queued_` too: a call's report may be here before its experts have been queued.
  if (outstanding() || queued_ != consumed_) return false;
  if (recorded_ && api_.event_query(last_.get()) == kCudaNotReady) return false;
  quiet_ = true;
  return true;
}

}  // namespace prophet
