// Streams: queues with a thread each; events: marks in them; graphs: what a stream was given while
// it captured.
//
// The order that CUDA promises, and nothing more, is told to ThreadSanitizer (ordering.h): a task
// runs after its stream's earlier tasks and after whoever queued it; a synchronising call, or a
// query that says done, comes after the work; a wait comes after the record it waits for.
//
// Not emulated: the legacy default stream's waiting for other streams, capture over several
// streams (refused with an error).
#pragma once

#include <driver_types.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "ordering.h"

namespace prophet::emulation {

// Something to do on a stream, any number of times; destroyed after the last.
class Work {
 public:
  explicit Work(std::function<void()> run) : run_(std::move(run)) {}
  ~Work() { done_.take(); }
  Work(const Work&) = delete;
  Work& operator=(const Work&) = delete;
  void operator()() {
    run_();
    done_.give();
  }

 private:
  std::function<void()> run_;
  Edge done_;
};

// One record of an event.
class Mark {
 public:
  void reach();    // on the stream's thread
  bool reached();  // takes the edge when it says yes
  void wait();     // on any thread; gives up after a second when the device is lost
  std::chrono::steady_clock::time_point when();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool reached_ = false;
  std::chrono::steady_clock::time_point when_;
  Edge before_;
};

struct Event {
  int device = 0;
  bool timing = true;
  std::mutex mutex;
  std::shared_ptr<Mark> mark;      // of the latest record; null: never recorded
  const void* captured = nullptr;  // the capture that the latest record belongs to
};

struct Graph {
  int device = 0;
  std::vector<std::shared_ptr<Work>> nodes;
};

class Stream : public std::enable_shared_from_this<Stream> {
 public:
  static std::shared_ptr<Stream> make(int device, int priority);  // with a thread

  int device() const { return device_; }
  int priority() const { return priority_; }

  // Queued, or kept while capturing.
  void push(std::function<void()> run);
  void replay(const Graph& graph);
  // Until all that was queued is done; gives up after a second when the device is lost.
  void wait();
  bool idle();
  void stop();  // after what is queued; no push afterwards

  cudaError_t begin_capture();
  // Gives the graph; an error that spoiled the capture instead.
  cudaError_t end_capture(std::unique_ptr<Graph>& graph);
  const void* capturing();  // null: not
  void spoil_capture();

 private:
  struct Task {
    std::shared_ptr<Work> work;
    Edge queued;
  };
  struct Capture {
    std::vector<std::shared_ptr<Work>> nodes;
    bool spoiled = false;
  };

  Stream(int device, int priority, std::uint64_t number);
  void run();
  void queue(std::shared_ptr<Work> work);
  void dawdle();  // a random short delay where a seed asks for it

  const int device_, priority_;
  std::uint64_t random_;
  std::mutex mutex_;
  std::condition_variable arrived_, drained_;
  std::deque<std::unique_ptr<Task>> queue_;
  bool busy_ = false, stopping_ = false;
  std::unique_ptr<Capture> capture_;
  Edge done_;
};

// All streams that still have a thread, those destroyed with work left among them.
std::vector<std::shared_ptr<Stream>> all_streams();

}  // namespace prophet::emulation
