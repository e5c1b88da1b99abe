#include "engine/foresight.h"

#include <sys/resource.h>
#include <time.h>

#include <algorithm>

#include "predict/bank_predictor.h"

namespace prophet {
namespace {

// Low enough to let compute go first; much lower, and what it has begun would starve on a busy
// machine while the next layer waits for it.
constexpr int kNiceness = 1;

Nanos thread_time() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return Nanos(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}

std::size_t count_told(const BankPredictor* bank) {
  return bank ? (2 + std::size_t(bank->network().config().ahead)) * bank->network().experts() : 0;
}

}  // namespace

Foresight::Foresight(std::unique_ptr<Predictor> predictor, const Geometry& geometry, bool threaded,
                     bool ahead, std::unique_ptr<Shadow> shadow, std::function<void()> hurry)
    : predictor_(std::move(predictor)),
      told_(count_told(predictor_->bank())),
      geometry_(geometry),
      ahead_(ahead),
      shadow_(std::move(shadow)),
      hurry_(std::move(hurry)),
      gaps_(std::size_t(geometry.total()), 1.0f) {
  if (threaded) worker_ = std::thread([this] { work(); });
}

Foresight::~Foresight() {
  {
    Lock lock(mutex_);
    stop_ = true;
  }
  posted_.notify_all();
  if (worker_.joinable()) worker_.join();
}

Foresight::Seen Foresight::room(Lock& lock) {
  const std::size_t most = 4 * std::size_t(geometry_.layers);
  done_.wait(lock, [&] { return queue_.size() < most; });
  if (spare_.empty()) return {};
  Seen seen = std::move(spare_.back());
  spare_.pop_back();
  return seen;
}

void Foresight::enqueue(Lock& lock, Seen seen) {
  queue_.push_back(std::move(seen));
  if (worker_.joinable()) {
    posted_.notify_one();
    return;
  }
  const Seen next = std::move(queue_.front());
  queue_.pop_front();
  lock.unlock();
  look(next);
}

void Foresight::post(const Approach& approach, std::int64_t tick) {
  Lock lock(mutex_);
  if (!failure_.empty()) return;
  Seen seen = room(lock);
  seen.tick = tick;
  seen.layer = approach.layer;
  seen.tokens = approach.tokens;
  seen.before = true;
  seen.has_ids = approach.ids != nullptr;
  if (seen.has_ids) seen.experts.assign(approach.ids, approach.ids + approach.tokens);
  seen.has_hidden = approach.entering != nullptr;
  if (seen.has_hidden) {
    seen.hidden.assign(approach.entering, approach.entering + entering_width());
  }
  seen.has_streams = approach.streams != nullptr;
  if (seen.has_streams) seen.streams.assign(approach.streams, approach.streams + approach.tokens);
  enqueue(lock, std::move(seen));
}

void Foresight::post(const Glimpse& glimpse, std::int64_t tick) {
  Lock lock(mutex_);
  if (!failure_.empty()) return;
  Seen seen = room(lock);
  seen.before = false;
  const std::size_t pairs = std::size_t(glimpse.tokens) * glimpse.top_k;
  seen.tick = tick;
  seen.layer = glimpse.layer;
  seen.tokens = glimpse.tokens;
  seen.top_k = glimpse.top_k;
  seen.experts.assign(glimpse.experts, glimpse.experts + pairs);
  seen.has_weights = glimpse.weights != nullptr;
  if (seen.has_weights) seen.weights.assign(glimpse.weights, glimpse.weights + pairs);
  const std::size_t width = std::size_t(predictor_->hidden_width());
  seen.has_hidden = width > 0 && glimpse.hidden != nullptr;
  seen.has_streams = glimpse.streams != nullptr;
  if (seen.has_streams) seen.streams.assign(glimpse.streams, glimpse.streams + glimpse.tokens);
  seen.has_told = told_ > 0 && glimpse.told != nullptr;
  if (seen.has_told) seen.told.assign(glimpse.told, glimpse.told + told_);
  seen.hidden_rows = glimpse.hidden_rows;
  if (seen.has_hidden) {
    seen.hidden.assign(glimpse.hidden, glimpse.hidden + std::size_t(glimpse.hidden_rows) * width);
  }
  enqueue(lock, std::move(seen));
}

void Foresight::work() {
  setpriority(PRIO_PROCESS, 0, kNiceness);  // Linux: of this thread alone
  Lock lock(mutex_);
  while (true) {
    posted_.wait(lock, [&] { return stop_ || (!queue_.empty() && !busy_); });
    if (stop_) return;
    serve(lock);
  }
}

// Takes the oldest glimpse; the lock is free while the predictor works.
void Foresight::serve(Lock& lock) {
  Seen next = std::move(queue_.front());
  queue_.pop_front();
  busy_ = true;
  lock.unlock();
  look(next);
  lock.lock();
  busy_ = false;
  spare_.push_back(std::move(next));
  done_.notify_all();
}

void Foresight::look(const Seen& seen) { seen.before ? approach(seen) : observe(seen); }

void Foresight::approach(const Seen& seen) {
  const Nanos begin = thread_time();
  std::string failure;
  Word word{seen.tick, {}};
  try {
    const bool news =
        predictor_->approach({seen.layer, seen.tokens, seen.has_ids ? seen.experts.data() : nullptr,
                              seen.has_hidden ? seen.hidden.data() : nullptr,
                              seen.has_streams ? seen.streams.data() : nullptr});
    if (news && ahead_) {
      predictor_->forecast((seen.layer + geometry_.layers - 1) % geometry_.layers, word.forecasts);
    }
  } catch (const std::exception& error) {
    failure = error.what();
  }
  const Nanos spent = thread_time() - begin;
  Lock lock(mutex_);
  time_ += spent;
  if (!failure.empty()) {
    failure_ = failure;
    queue_.clear();
    fresh_.clear();
    return;
  }
  say(std::move(word));
  if (hurry_ && news_.load(std::memory_order_relaxed)) hurry_();
}

void Foresight::say(Word word) {
  if (word.forecasts.empty() || !trusted_) return;
  words_.push_back(std::move(word));
  news_.store(true, std::memory_order_release);
}

void Foresight::observe(const Seen& seen) {
  const Nanos begin = thread_time();
  std::string failure;
  bool told = false;
  Word word{seen.tick, {}};
  // Only this thread writes the gaps of this layer, and `settle` reads them when it is idle.
  const std::span<float> gaps(gaps_.data() + std::size_t(seen.layer) * geometry_.experts_per_layer,
                              std::size_t(geometry_.experts_per_layer));
  try {
    predictor_->observe({seen.layer, seen.tokens, seen.top_k, seen.experts.data(),
                         seen.has_weights ? seen.weights.data() : nullptr,
                         seen.has_hidden ? seen.hidden.data() : nullptr,
                         seen.has_streams ? seen.streams.data() : nullptr,
                         seen.has_told ? seen.told.data() : nullptr, seen.hidden_rows});
    told = predictor_->next_use(seen.layer, gaps);
    if (told && !std::all_of(gaps.begin(), gaps.end(), [](float gap) { return gap >= 1.0f; })) {
      failure = "the predictor gave a gap that is below one turn or no number";
    }
    if (ahead_) predictor_->forecast(seen.layer, word.forecasts);
    if (shadow_) shadow_->step(seen.layer, seen.experts, told ? gaps : std::span<float>());
  } catch (const std::exception& error) {
    failure = error.what();
  }
  const Nanos spent = thread_time() - begin;
  Lock lock(mutex_);
  time_ += spent;
  ++observations_;
  if (shadow_) trusted_ = shadow_->trusts();
  distrusted_ += !trusted_;
  if (!failure.empty()) {
    failure_ = failure;
    queue_.clear();
    fresh_.clear();
    return;
  }
  if (told) fresh_.push_back(seen.layer);
  say(std::move(word));
}

bool Foresight::take(std::vector<Word>& words) {
  words.clear();
  if (!news_.load(std::memory_order_acquire)) return false;
  Lock lock(mutex_);
  words.swap(words_);
  news_.store(false, std::memory_order_release);
  return true;
}

void Foresight::catch_up(Lock& lock) {
  // On a busy machine a worker of low priority may not have been let in yet: what it has not begun
  // is done here, so that nobody waits for its turn.
  while (busy_ || !queue_.empty()) {
    if (busy_) {
      done_.wait(lock, [&] { return !busy_; });
    } else {
      serve(lock);
    }
  }
}

void Foresight::idle(const std::function<void()>& use) {
  Lock lock(mutex_);
  catch_up(lock);
  use();
}

void Foresight::settle(EvictionPolicy& policy) {
  Lock lock(mutex_);
  catch_up(lock);
  const std::int32_t experts = geometry_.experts_per_layer;
  for (std::int32_t layer : fresh_) {
    if (!trusted_) break;
    policy.expects(layer, {gaps_.data() + std::size_t(layer) * experts, std::size_t(experts)});
  }
  fresh_.clear();
}

std::string Foresight::failure() const {
  Lock lock(mutex_);
  return failure_;
}

std::uint64_t Foresight::observations() const {
  Lock lock(mutex_);
  return observations_;
}

std::uint64_t Foresight::distrusted() const {
  Lock lock(mutex_);
  return distrusted_;
}

Nanos Foresight::time() const {
  Lock lock(mutex_);
  return time_;
}

}  // namespace prophet
