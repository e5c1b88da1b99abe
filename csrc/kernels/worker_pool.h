// The project's own threads for expert arithmetic.
//
// Work is claimed in chunks from an atomic counter, so a descheduled worker delays one
// chunk and not the operation. Idle workers spin for at most about 50 µs, then sleep on a
// futex-like wait: nothing burns a core between layers.
#pragma once

#include <functional>
#include <memory>

namespace prophet {

class WorkerPool {
 public:
  // `threads` includes the caller: threads - 1 are started. At least 1.
  explicit WorkerPool(int threads);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  int threads() const;

  // Calls body(i) for every i in [0, count), on any thread, each exactly once; returns when all
  // have returned. The caller works too. Must not be called from inside a body, and by one thread
  // at a time. A body must not throw.
  void run(int count, const std::function<void(int)>& body);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace prophet
