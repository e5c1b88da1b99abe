// Runs a predictor beside the layers, so that it never delays one.
//
// `post` hands over what the router said and returns; a worker of low priority feeds the
// predictor. `settle` opens the next layer step: the worker has had the time between two experts
// calls for its microseconds, what it has not begun by then is done at once, and the policy is
// told. Since every glimpse is known before a victim is chosen, decisions do not depend on how fast
// the worker was. Forecasts of coming layers are handed out as soon as they are there (`take`), to
// whoever plans prefetches.
//
// Do no harm: a shadow (engine/shadow.h) compares what the predictor would keep with the best rule
// without it; while it keeps worse experts, the policy does not hear of its gaps.
//
// A predictor that throws is switched off, and the reason kept: generation goes on without it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/types.h"
#include "engine/shadow.h"
#include "policy/eviction_policy.h"
#include "predict/predictor.h"

namespace prophet {

class Foresight {
 public:
  // `threaded` false: `post` does the work itself (virtual time, or one core). `ahead`: forecasts
  // of coming layers are wanted. `shadow` may be null: then the predictor is trusted blindly.
  // `hurry` is called by the worker when there is a word on a layer that is about to run, which
  // nobody would ask for in time; it must not wait.
  Foresight(std::unique_ptr<Predictor> predictor, const Geometry& geometry, bool threaded,
            bool ahead = false, std::unique_ptr<Shadow> shadow = nullptr,
            std::function<void()> hurry = {});
  ~Foresight();
  Foresight(const Foresight&) = delete;

  // Copies the glimpse of layer step number `tick`. Waits only when more than two tokens' worth of
  // layers are queued.
  void post(const Glimpse& glimpse, std::int64_t tick = 0);

  // The same of what is known before the layer step after number `tick`. What it makes the
  // predictor say replaces, of the layers that it speaks of, what was said before.
  void post(const Approach& approach, std::int64_t tick = 0);

  // What was forecast after one layer step, or before the next one.
  struct Word {
    std::int64_t tick = 0;
    std::vector<Forecast> forecasts;
  };
  // Moves what was forecast since the last time to `words`, oldest first; false when nothing was.
  // Never waits for the worker. Nothing is forecast while the predictor is not trusted.
  bool take(std::vector<Word>& words);

  // Everything posted so far has been seen by the predictor; its gaps are told to the policy.
  void settle(EvictionPolicy& policy);

  // The learned forecaster (Predictor::bank), for `use` while it is idle and has seen everything
  // posted so far.
  BankPredictor* bank() { return predictor_->bank(); }
  void idle(const std::function<void()>& use);

  std::string name() const { return predictor_->name(); }
  bool reads_tokens() const { return predictor_->reads_tokens(); }
  std::size_t entering_width() const { return std::size_t(predictor_->entering_width()); }
  std::size_t hidden_width() const { return std::size_t(predictor_->hidden_width()); }
  std::string failure() const;         // why it was switched off; empty while it works
  std::uint64_t observations() const;  // layer steps seen
  std::uint64_t distrusted() const;    // of those, without trust in its gaps
  Nanos time() const;                  // CPU time the predictor took

 private:
  struct Seen {
    std::int64_t tick;
    std::int32_t layer, tokens, top_k;
    std::vector<std::int32_t> experts;  // of an approach: token ids
    std::vector<float> weights, hidden, told;
    std::vector<std::int64_t> streams;
    bool before, has_ids, has_weights, has_hidden, has_streams, has_told;
    std::int32_t hidden_rows;
  };
  using Lock = std::unique_lock<std::mutex>;

  void work();
  void serve(Lock& lock);
  void catch_up(Lock& lock);
  Seen room(Lock& lock);
  void enqueue(Lock& lock, Seen seen);
  void look(const Seen& seen);
  void observe(const Seen& seen);
  void approach(const Seen& seen);
  void say(Word word);  // under the lock

  const std::unique_ptr<Predictor> predictor_;
  const std::size_t told_;  // numbers of Glimpse::told
  const Geometry geometry_;
  const bool ahead_;
  const std::unique_ptr<Shadow> shadow_;
  const std::function<void()> hurry_;
  mutable std::mutex mutex_;
  std::condition_variable posted_, done_;
  std::deque<Seen> queue_;
  std::vector<Seen> spare_;  // kept for their capacity
  bool busy_ = false, stop_ = false;
  std::vector<float> gaps_;          // [layers, experts_per_layer]
  std::vector<std::int32_t> fresh_;  // layers whose gaps the policy has not heard yet
  std::vector<Word> words_;
  std::atomic<bool> news_ = false;  // `words_` is not empty
  std::string failure_;
  std::uint64_t observations_ = 0, distrusted_ = 0;
  bool trusted_ = true;
  Nanos time_ = 0;
  std::thread worker_;
};

}  // namespace prophet
