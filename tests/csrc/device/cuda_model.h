// A CUDA runtime of tests: a table over ordinary memory that does nothing sooner than it must, and
// knows what it was never told to do in order.
//
//  * Streams are queues; one thread copies, another computes. Each takes the next task of any
//    stream that may go on, by chance (seeded), whatever its priority. `hold` stops both.
//  * Order. Tasks that touch the same device memory in no order are races (stream_order.h),
//    whether or not the bytes came out right.
//  * Faults. `fail` makes the n-th call of a function return a code, for ever if it is sticky.
//  * Balance. What was made and not given back is counted.
//
// One model at a time; it must outlive every backend that was given its table.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "device/cuda/cuda_api.h"
#include "device/stream_order.h"

namespace prophet::testing_device {

class CudaModel {
 public:
  explicit CudaModel(std::uint64_t seed = 1) : random_(seed) {
    self_ = this;
    streams_[0] = std::make_unique<Queue>();  // the default stream
    streams_[0]->id = 1;
    for (int engine : {0, 1}) threads_[engine] = std::thread([this, engine] { run(engine); });
  }
  ~CudaModel() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
      held_ = false;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    self_ = nullptr;
  }
  CudaModel(const CudaModel&) = delete;

  const CudaApi* api() const { return &table(); }
  static CudaApi copy_of_table() { return table(); }  // for mutants

  void hold() {
    std::lock_guard lock(mutex_);
    held_ = true;
  }
  void release() {
    std::lock_guard lock(mutex_);
    held_ = false;
    changed_.notify_all();
  }
  void set_nanoseconds_per_copy(std::int64_t time) { copy_time_ = time; }

  using Range = StreamOrder::Range;
  // A kernel: reads what it says and does `body` on the compute thread.
  void launch(void* stream, std::vector<Range> reads, std::function<void()> body) {
    std::lock_guard lock(mutex_);
    Queue& queue = *streams_.at(stream);
    push(queue, Kind::kernel, std::move(body));
    for (const Range& range : reads) order_.touches(queue.id, range, false, "a kernel reads");
  }
  void* make_stream() {
    void* stream = nullptr;
    stream_create(0, &stream);
    return stream;
  }

  // The n-th call from now on (1: the next) of a function, by its name in the table.
  void fail(const std::string& function, int nth, int code, bool sticky = false) {
    std::lock_guard lock(mutex_);
    faults_[function] = {nth, code, sticky};
  }
  // Every later call fails.
  void lose_device(int code = kCudaLaunchFailure) {
    std::lock_guard lock(mutex_);
    lost_ = code;
    changed_.notify_all();
  }
  void heal() {
    std::lock_guard lock(mutex_);
    lost_ = 0;
    faults_.clear();
  }

  std::vector<std::string> races() const {
    std::lock_guard lock(mutex_);
    return order_.races();
  }
  int calls(const std::string& function) const {
    std::lock_guard lock(mutex_);
    const auto at = calls_.find(function);
    return at == calls_.end() ? 0 : at->second;
  }
  std::map<std::string, int> all_calls() const {
    std::lock_guard lock(mutex_);
    return calls_;
  }
  std::size_t copies_queued() const {  // given to a stream and not done
    std::lock_guard lock(mutex_);
    return copies_queued_;
  }
  // Streams, events and allocations that exist.
  std::size_t alive() const {
    std::lock_guard lock(mutex_);
    return streams_.size() - 1 + events_.size() + memory_.size();
  }
  int device_of_last_creation() const { return created_on_; }
  void limit_pinned(std::size_t bytes) { pin_limit_ = bytes; }
  void limit_device(std::size_t bytes) { device_limit_ = bytes; }

 private:
  enum class Kind { copy, kernel, record, wait };
  struct Event {
    std::uint64_t recorded = 0, done = 0;
    StreamOrder::Clock clock;
  };
  struct Task {
    Kind kind;
    std::function<void()> body;
    Event* event = nullptr;
    std::uint64_t count = 0;  // of the event: to be recorded, or to be waited for
  };
  struct Queue {
    int id = 0;
    std::deque<Task> tasks;
    bool busy = false;
  };
  struct Fault {
    int left, code;
    bool sticky;
  };
  using Lock = std::unique_lock<std::mutex>;

  // What may not even be asked for now.
  int enter(const char* function) {
    ++calls_[function];
    if (lost_ != 0) return lost_;
    const auto at = faults_.find(function);
    if (at == faults_.end() || --at->second.left > 0) return 0;
    const Fault fault = at->second;
    faults_.erase(at);
    if (fault.sticky) {
      lost_ = fault.code;
      changed_.notify_all();
    }
    return fault.code;
  }
  void push(Queue& queue, Kind kind, std::function<void()> body, Event* event = nullptr,
            std::uint64_t count = 0) {
    order_.queued(queue.id);
    queue.tasks.push_back({kind, std::move(body), event, count});
    changed_.notify_all();
  }
  Queue* runnable(int engine) {
    std::vector<Queue*> able;
    for (auto& [handle, queue] : streams_) {
      if (queue->busy || queue->tasks.empty()) continue;
      Task& task = queue->tasks.front();
      const bool mine = (task.kind == Kind::kernel) == (engine == 1);
      const bool waits = task.kind == Kind::wait && task.event->done < task.count;
      if (mine && !waits) able.push_back(queue.get());
    }
    return able.empty() ? nullptr : able[random_() % able.size()];
  }
  void run(int engine) {
    Lock lock(mutex_);
    for (;;) {
      Queue* queue = nullptr;
      changed_.wait(lock, [&] { return stop_ || (!held_ && (queue = runnable(engine))); });
      if (queue == nullptr) return;
      Task task = std::move(queue->tasks.front());
      queue->tasks.pop_front();
      queue->busy = true;
      if (task.kind == Kind::record) task.event->done = std::max(task.event->done, task.count);
      if (task.body) {
        const auto until =
            std::chrono::steady_clock::now() +
            std::chrono::nanoseconds(task.kind == Kind::copy ? copy_time_.load() : 0);
        lock.unlock();
        std::this_thread::sleep_until(until);
        task.body();
        lock.lock();
      }
      if (task.kind == Kind::copy) --copies_queued_;
      queue->busy = false;
      changed_.notify_all();
    }
  }

  static CudaModel& self() { return *self_; }
  static Event* event_at(void* event) { return static_cast<Event*>(event); }

  static const char* error_name(int code) {
    return code == kCudaOutOfMemory ? "cudaErrorMemoryAllocation" : "cudaErrorOfTheModel";
  }
  static const char* error_text(int code) {
    return code == kCudaOutOfMemory ? "out of memory" : "an error of the model";
  }
  static int device_info(int device, CudaDeviceInfo* info) {
    std::lock_guard lock(self().mutex_);
    if (const int code = self().enter("device_info")) return code;
    *info = {};
    std::strcpy(info->name, "Model");
    info->emulated = 1;
    return device == 0 || device == 1 ? 0 : 101;
  }
  static int use_device(int device) {
    std::lock_guard lock(self().mutex_);
    thread_device_ = device;
    return self().enter("use_device");
  }
  static int memory_info(std::size_t* free, std::size_t* total) {
    *free = *total = self().device_limit_;
    return 0;
  }
  static int allocate(std::size_t bytes, void** memory) {
    std::lock_guard lock(self().mutex_);
    if (const int code = self().enter("allocate")) return code;
    if (bytes > self().device_limit_) return kCudaOutOfMemory;
    self().created_on_ = thread_device_;
    return self().make_memory(256, bytes, CudaMemory::device, memory);
  }
  static int release(void* memory) {
    Lock lock(self().mutex_);
    self().enter("release");
    self().changed_.wait(lock, [] {
      return std::all_of(self().streams_.begin(), self().streams_.end(), [](const auto& each) {
        return each.second->tasks.empty() && !each.second->busy;
      });
    });
    self().order_.host_learns_all();
    return self().free_memory(memory);
  }
  static int pin(std::size_t bytes, void** memory) {
    std::lock_guard lock(self().mutex_);
    if (const int code = self().enter("pin")) return code;
    if (self().pinned_ + bytes > self().pin_limit_) return kCudaOutOfMemory;
    self().pinned_ += bytes;
    return self().make_memory(4096, bytes, CudaMemory::pinned, memory);
  }
  static int unpin(void* memory) {
    std::lock_guard lock(self().mutex_);
    self().enter("unpin");
    return self().free_memory(memory);
  }
  int make_memory(std::size_t align, std::size_t bytes, CudaMemory kind, void** memory) {
    // Never on a page of its own where nobody promised one.
    auto* base = static_cast<std::byte*>(std::aligned_alloc(4096, (bytes + 8191) / 4096 * 4096));
    if (base == nullptr) return kCudaOutOfMemory;
    std::memset(base, 0xCD, bytes);
    *memory = base + (align < 4096 ? align : 0);
    memory_[*memory] = {base, kind, thread_device_};
    return 0;
  }
  int free_memory(void* memory) {
    const auto at = memory_.find(memory);
    if (at == memory_.end()) return kCudaInvalidValue;
    std::free(at->second.base);
    memory_.erase(at);
    return 0;
  }
  static int memory_kind(const void* address, CudaMemory* kind, int* device) {
    std::lock_guard lock(self().mutex_);
    if (const int code = self().enter("memory_kind")) return code;
    const auto at = self().memory_.find(const_cast<void*>(address));
    *kind = at == self().memory_.end() ? CudaMemory::pageable : at->second.kind;
    *device = at == self().memory_.end() ? -1 : at->second.device;
    return 0;
  }
  static int stream_create(int, void** stream) {
    std::lock_guard lock(self().mutex_);
    if (const int code = self().enter("stream_create")) return code;
    auto queue = std::make_unique<Queue>();
    queue->id = ++self().last_id_;
    *stream = queue.get();
    self().streams_[*stream] = std::move(queue);
    return 0;
  }
  static int stream_destroy(void* stream) {
    Lock lock(self().mutex_);
    self().enter("stream_destroy");
    Queue& queue = *self().streams_.at(stream);
    self().changed_.wait(lock, [&] { return queue.tasks.empty() && !queue.busy; });
    self().streams_.erase(stream);
    return 0;
  }
  static int stream_wait_event(void* stream, void* event) {
    std::lock_guard lock(self().mutex_);
    if (const int code = self().enter("stream_wait_event")) return code;
    Queue& queue = *self().streams_.at(stream);
    self().push(queue, Kind::wait, {}, event_at(event), event_at(event)->recorded);
    self().order_.waits(queue.id, event_at(event)->clock);
    return 0;
  }
  static int stream_query(void* stream) {
    std::lock_guard lock(self().mutex_);
    if (const int code = self().enter("stream_query")) return code;
    const Queue& queue = *self().streams_.at(stream);
    return queue.tasks.empty() && !queue.busy ? 0 : kCudaNotReady;
  }
  static int stream_synchronize(void* stream) {
    Lock lock(self().mutex_);
    if (const int code = self().enter("stream_synchronize")) return code;
    Queue& queue = *self().streams_.at(stream);
    const StreamOrder::Clock clock = self().order_.clock(queue.id);
    self().changed_.wait(lock, [&] { return queue.tasks.empty() && !queue.busy; });
    self().order_.host_learns(clock);
    return 0;
  }
  static int event_create(int, void** event) {
    std::lock_guard lock(self().mutex_);
    if (const int code = self().enter("event_create")) return code;
    self().created_on_ = thread_device_;
    auto made = std::make_unique<Event>();
    *event = made.get();
    self().events_[*event] = std::move(made);
    return 0;
  }
  static int event_destroy(void* event) {
    std::lock_guard lock(self().mutex_);
    self().enter("event_destroy");
    // Kept in memory: a queued record may still name it.
    self().graves_.push_back(std::move(self().events_.at(event)));
    self().events_.erase(event);
    return 0;
  }
  static int event_record(void* event, void* stream) {
    std::lock_guard lock(self().mutex_);
    if (const int code = self().enter("event_record")) return code;
    const auto at = self().streams_.find(stream);
    if (at == self().streams_.end()) return 400;  // invalid handle
    self().push(*at->second, Kind::record, {}, event_at(event), ++event_at(event)->recorded);
    event_at(event)->clock = self().order_.clock(at->second->id);
    return 0;
  }
  static int event_query(void* event) {
    std::lock_guard lock(self().mutex_);
    if (const int code = self().enter("event_query")) return code;
    if (event_at(event)->done < event_at(event)->recorded) return kCudaNotReady;
    self().order_.host_learns(event_at(event)->clock);
    return 0;
  }
  static int event_synchronize(void* event) {
    Lock lock(self().mutex_);
    if (const int code = self().enter("event_synchronize")) return code;
    const std::uint64_t count = event_at(event)->recorded;
    const StreamOrder::Clock clock = event_at(event)->clock;
    self().changed_.wait(lock, [&] { return event_at(event)->done >= count || self().lost_ != 0; });
    if (self().lost_ != 0) return self().lost_;
    self().order_.host_learns(clock);
    return 0;
  }
  static int copy_async(void* to, const void* from, std::size_t bytes, CudaCopy kind,
                        void* stream) {
    std::lock_guard lock(self().mutex_);
    if (const int code = self().enter("copy_async")) return code;
    Queue& queue = *self().streams_.at(stream);
    ++self().copies_queued_;
    self().push(queue, Kind::copy, [=] { std::memcpy(to, from, bytes); });
    if (kind == CudaCopy::to_device)
      self().order_.touches(queue.id, {to, bytes}, true, "a copy writes");
    return 0;
  }
  static const CudaApi& table() {
    static const CudaApi made = [] {
      CudaApi api{};
      api.version = kCudaApiVersion;
      api.size = sizeof(CudaApi);
      api.error_name = error_name;
      api.error_text = error_text;
      api.device_info = device_info;
      api.use_device = use_device;
      api.memory_info = memory_info;
      api.allocate = allocate;
      api.release = release;
      api.pin = pin;
      api.unpin = unpin;
      api.memory_kind = memory_kind;
      api.stream_create = stream_create;
      api.stream_destroy = stream_destroy;
      api.stream_wait_event = stream_wait_event;
      api.stream_query = stream_query;
      api.stream_synchronize = stream_synchronize;
      api.event_create = event_create;
      api.event_destroy = event_destroy;
      api.event_record = event_record;
      api.event_query = event_query;
      api.event_synchronize = event_synchronize;
      api.copy_async = copy_async;
      return api;
    }();
    return made;
  }

  inline static CudaModel* self_ = nullptr;
  inline static thread_local int thread_device_ = 0;

  struct Memory {
    void* base;
    CudaMemory kind;
    int device;
  };
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::mt19937_64 random_;
  bool stop_ = false, held_ = false;
  int lost_ = 0, last_id_ = 1, created_on_ = -1;
  std::atomic<std::int64_t> copy_time_{0};
  std::size_t copies_queued_ = 0, pinned_ = 0;
  std::size_t pin_limit_ = ~std::size_t{0}, device_limit_ = std::size_t{1} << 30;
  std::map<void*, std::unique_ptr<Queue>> streams_;
  std::map<void*, std::unique_ptr<Event>> events_;
  std::vector<std::unique_ptr<Event>> graves_;
  std::map<void*, Memory> memory_;
  StreamOrder order_;
  std::map<std::string, Fault> faults_;
  std::map<std::string, int> calls_;
  std::array<std::thread, 2> threads_;
};

}  // namespace prophet::testing_device
