// What the engine brings early: what the predictor is told, how fast the lanes are, which wishes
// follow.
#include <algorithm>
#include <string>

#include "core/error.h"
#include "engine/engine.h"

namespace prophet {

// Times per expert and per layer step since the last token, averaged over some tokens.
void Engine::measure_pace() {
  const LaneStats demand = backend_->stats(Lane::demand), early = backend_->stats(Lane::prefetch);
  const StagingStats staging = backend_->staging();
  const Mark now{ticks_,
                 demand.bytes + early.bytes,
                 backend_->now(),
                 backend_->busy(),
                 demand.busy,
                 staging.read[0].bytes + staging.read[1].bytes,
                 staging.read[0].busy,
                 staging.read[1].busy};
  const double steps = double(now.ticks - mark_.ticks), bytes = double(now.bytes - mark_.bytes);
  if (steps > 0) {
    const auto blend = [](double& average, double value) {
      average = average == 0 ? value : 0.8 * average + 0.2 * value;
    };
    blend(pace_.step, double(now.now - mark_.now) / steps);
    blend(pace_.idle, double((now.now - mark_.now) - (now.demand - mark_.demand)) / steps);
    if (bytes > 0) {
      blend(pace_.expert, double(now.busy - mark_.busy) / bytes * double(store_->slot_bytes()));
    }
    const double read = double(now.read_bytes - mark_.read_bytes);
    const Nanos for_demands = now.read_demand - mark_.read_demand;
    if (read > 0) {
      const Nanos reading = for_demands + (now.read_early - mark_.read_early);
      blend(pace_.staged, double(reading) / read * double(store_->slot_bytes()));
      blend(pace_.disk_idle, double((now.now - mark_.now) - for_demands) / steps);
    }
  }
  mark_ = now;
}

void Engine::plan_wishes() {
  if (!planner_) return;
  if (foresight_->take(words_)) {
    for (const Foresight::Word& word : words_) {
      planner_->heard(word.tick, word.forecasts);
      cache_.policy().forecast(word.forecasts);
    }
    replan_ = true;
  }
  if (!replan_) return;
  replan_ = false;
  planner_->plan(cache_, pace_, wanted_);
  mover_.want(wanted_);
  if (!wanted_.empty()) wake_.notify_one();
}

void Engine::start_wishes() {
  plan_wishes();
  mover_.start_wishes();
}

void Engine::observe(Glimpse glimpse, std::size_t hidden_width) {
  if (!geometry().contains({glimpse.layer, 0})) {
    throw InvalidArgument("there is no MoE layer " + std::to_string(glimpse.layer));
  }
  if (hits_) {  // after what the device was asked
    std::lock_guard<std::mutex> step(step_mutex_);
    quiesce();
  }
  hear(glimpse, hidden_width);
}

void Engine::approach(Approach approach, std::size_t entering_width) {
  if (!foresight_) return;
  if (!geometry().contains({approach.layer, 0})) {
    throw InvalidArgument("there is no MoE layer " + std::to_string(approach.layer));
  }
  if (!foresight_->reads_tokens()) approach.ids = nullptr;
  if (entering_width == 0 || entering_width != foresight_->entering_width()) {
    approach.entering = nullptr;
  }
  if (!approach.ids && !approach.entering) return;
  if (streams_.size() == std::size_t(approach.tokens)) approach.streams = streams_.data();
  std::int64_t tick = 0;
  if (planner_) {
    Lock lock(mutex_);
    tick = ticks_;
  }
  foresight_->post(approach, tick);
}

void Engine::hear(Glimpse glimpse, std::size_t hidden_width) {
  if (!foresight_) return;
  if (hidden_width != foresight_->hidden_width()) glimpse.hidden = nullptr;
  if (streams_.size() == std::size_t(glimpse.tokens)) glimpse.streams = streams_.data();
  std::int64_t tick = 0;
  if (planner_) {
    Lock lock(mutex_);
    tick = ticks_;
    planner_->asked(glimpse.layer, {glimpse.experts, std::size_t(glimpse.tokens) * glimpse.top_k});
  }
  foresight_->post(glimpse, tick);
}

std::string Engine::foresight_failure() const {
  return foresight_ ? foresight_->failure() : std::string();
}

}  // namespace prophet
