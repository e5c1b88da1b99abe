#include "telemetry/recorder.h"

namespace prophet {

std::string_view name_of(EventKind kind) {
  constexpr std::string_view names[kEventKinds] = {
      "layer_step",    "wave",          "hit",           "in_flight",
      "miss",          "stall",         "compute",       "read_demand",
      "read_prefetch", "prefetch_used", "prefetch_late", "prefetch_wasted",
      "cancelled",     "failed",        "evicted",       "evicted_unused"};
  return names[static_cast<int>(kind)];
}

Recorder::Recorder(std::size_t timeline_capacity, EventWatcher* watcher)
    : capacity_(timeline_capacity), watcher_(watcher) {
  timeline_.reserve(capacity_ < 4096 ? capacity_ : 4096);
}

void Recorder::record(const Event& event) {
  Totals& total = totals_[static_cast<int>(event.kind)];
  total.count += 1;
  total.bytes += event.bytes;
  total.time += event.end - event.begin;
  if (watcher_ != nullptr) watcher_->happened(event);
  if (timeline_.size() < capacity_) {
    timeline_.push_back(event);
  } else if (capacity_ > 0) {
    ++dropped_;
  }
}

}  // namespace prophet
