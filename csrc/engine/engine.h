// Who speaks to whom? The engine introduces store, cache, mover, kernels and backend.
//
// One MoE layer step: the router's choice arrives → resident experts are leased, absent ones
// demanded → experts are computed as they land → results are summed in one fixed order →
// leases end. Two ways in: `forward` does all of it with the project's kernels, for decode-sized
// batches; `lease` hands the experts to a caller who computes himself.
//
// Threads: one mutex guards the engine's state; lanes and compute workers are the only
// other threads and speak to it through tickets. A background thread keeps prefetches flowing while
// a backend has a real clock. Every call may come from any thread; layer steps are served one at a
// time.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "cache/cache.h"
#include "core/types.h"
#include "device/backend.h"
#include "device/cuda/cuda_api.h"
#include "engine/foresight.h"
#include "engine/lease.h"
#include "engine/planner.h"
#include "kernels/cuda_kernels.h"
#include "kernels/expert_ffn.h"
#include "kernels/worker_pool.h"
#include "store/weight_store.h"
#include "telemetry/recorder.h"
#include "transfer/mover.h"

namespace prophet {

// A CUDA device's runtime and kernels. The arena must then be memory of that device, and `forward`
// computes there. The tables stay as long as the engine.
struct DeviceTables {
  const CudaApi* api = nullptr;
  const CudaKernels* kernels = nullptr;
  int device = 0;
};

struct EngineOptions {
  std::int32_t slots = 0;
  std::string policy = "lru";  // see policy/eviction_policy.h
  // In its place, one that is not in the registry.
  std::function<std::unique_ptr<EvictionPolicy>(const Geometry&)> make_policy;
  PoolScope pool = PoolScope::global;
  bool stream = true;  // steps over many tokens may stream (Cache::stream)
  bool keep = true;    // false: every expert is dropped after its use (the on-demand floor)
  int threads = 1;     // compute threads, the caller's included
  MoverOptions mover;
  bool trust_blindly = false;  // use the predictor's gaps even where they keep worse experts
  PrefetchRule prefetch;       // what to bring early, by the predictor's word; last = 0: nothing
  std::size_t timeline_events = 0;
  EventWatcher* watcher = nullptr;  // hears of every event, under the engine's lock; outlives it
  bool background = true;  // threads for prefetches and the predictor; off where time is virtual
  DeviceTables device;     // without tables: the arena is host memory, and the CPU computes
  // On a device, with background threads: decode-sized layers are queued without waiting for the
  // host, which hears of them later (kernels/hit_path.h).
  bool hit_path = true;
  // There, the learned forecaster (Predictor::bank) runs on the device too, a launch more per layer
  // and no work of the host's; where that cannot be, as before: see Engine::device_forecasts.
  bool device_forecasts = false;
};

// Where one matrix of an expert begins: a piece of the store and an offset inside it.
struct PieceSlice {
  int piece = 0;
  std::uint64_t offset = 0;
};

// How `forward` finds and computes an expert. Pieces must hold the matrices of
// kernels/expert_ffn.h.
struct FfnLayout {
  FfnShape shape;
  PieceSlice gate, up, down;
};

// One layer call. Arrays are dense and row-major: x and out [tokens, hidden] of `dtype`, ids
// [tokens, top_k], weights [tokens, top_k] of `weights_dtype`. Ids at or above experts_per_layer
// belong to another rank and are skipped, as are pairs of weight zero.
//
// An engine with a device takes host addresses (it copies, and `out` is there on return) or device
// addresses: then work is queued on `stream` and `out` is there when the stream has passed.
struct LayerBatch {
  std::int32_t tokens = 0, top_k = 0;
  DType dtype = DType::bf16, weights_dtype = DType::f32;
  const void* x = nullptr;
  const std::int64_t* ids = nullptr;
  const void* weights = nullptr;
  void* out = nullptr;
  bool on_device = false;
  Stream stream = 0;  // of that device, where the arrays are on it
  // The stream is being captured: the layer will run whenever the graph does, on one stream at a
  // time and no longer than the engine is open. Only for batches that the slots always hold; a call
  // like it must have been made before, and leases are refused from then on.
  bool captured = false;
};

// Everything counted so far. Bytes and events as telemetry/recorder.h defines them.
struct Counters {
  std::uint64_t bytes_moved, bytes_demand, bytes_prefetch_used, bytes_prefetch_late,
      bytes_prefetch_wasted, bytes_prefetch_unused, bytes_cancelled;
  // Below fast memory, where there is a staging tier: read from files into it, and found there by
  // copies to fast memory (a miss that cost the link alone).
  std::uint64_t bytes_staged, bytes_found_staged;
  std::uint64_t hits_resident, hits_in_flight, misses;
  std::uint64_t evictions, evicted_before_use, layer_steps, waves, reads, reads_failed;
  std::uint64_t expert_bytes_routed;   // bytes of all experts asked for, wherever they were
  std::uint64_t streamed_steps;        // layer steps that streamed
  std::uint64_t foresight_steps;       // layer steps that the predictor saw
  std::uint64_t foresight_held_steps;  // of those, without trust in what it would keep
  std::uint64_t prefetch_held_steps;   // layer steps in which prefetching was held back: it cost
                                       // more than it saved
  Nanos stall_ns, compute_ns, busy_ns, now_ns, foresight_ns;
};

struct HitReport;

class Engine {
 public:
  // Throws InvalidArgument when the slots cannot serve one token, the policy is unknown or the
  // arena cannot be had. The store and the backend's files must describe the same list of files.
  // `predictor` may be null: then policies go by what they see themselves.
  Engine(std::shared_ptr<const WeightStore> store, std::shared_ptr<Backend> backend,
         EngineOptions options, std::unique_ptr<Predictor> predictor = nullptr);
  ~Engine();

  const Geometry& geometry() const { return store_->geometry(); }
  const WeightStore& store() const { return *store_; }
  const EngineOptions& options() const { return options_; }
  std::int32_t slots() const { return cache_.slots(); }
  std::int32_t pool_slots(std::int32_t layer) const;
  int threads() const { return pool_.threads(); }
  std::span<const std::byte> arena() const { return arena_; }

  // Throws InvalidArgument when a matrix does not fit in its piece.
  void set_ffn(const FfnLayout& layout);

  // Serves one layer with the project's kernels. Tokens whose experts exceed the slots are served
  // in waves split by token: a token's experts are all leased at once, so its sum never changes.
  // Throws ReadError when bytes could not be read, DeviceError when a device failed (out is then
  // undefined), InvalidArgument, StateError.
  void forward(std::int32_t layer, const LayerBatch& batch);

  // One tick of the policies: a layer is about to be served by leases. `forward` does it itself.
  void step(std::int32_t layer) { step(layer, 1, {}); }
  // The same for a step of `tokens` tokens, `counts[e]` of which chose expert e (or empty). Where
  // they chose more experts than the layer's part of the slots, the step streams (Cache::stream).
  // Returns how many absent experts the caller should lease at a time, at least one token's. Throws
  // InvalidArgument when the counts are not one for each expert.
  std::int32_t step(std::int32_t layer, std::int32_t tokens, std::span<const std::int32_t> counts);
  // Whether steps may stream at all, from the next one on.
  void set_streaming(bool may);
  bool streaming() const;

  // What the router of a layer served by leases said; `forward` tells the predictor itself.
  // `glimpse.hidden`, when given, holds `hidden_width` numbers; a predictor made for another width
  // does not get to see them.
  void observe(Glimpse glimpse, std::size_t hidden_width = 0);

  // What is known before a layer runs: called before its attention, in the order of layers.
  // `approach.entering`, when given, holds `entering_width` numbers; a predictor made for another
  // width does not get to see them. Costs nothing where the predictor reads none of it.
  void approach(Approach approach, std::size_t entering_width = 0);

  // Which sequence each row of the coming layer steps belongs to, until it is called again; empty:
  // all to one. Steps with another number of rows go without. Called by the thread that calls
  // forward and observe, between passes.
  void streams(std::vector<std::int64_t> rows) { streams_ = std::move(rows); }

  // Asks for distinct experts of one layer and pins them; returns at once. Throws
  // InvalidArgument (twice the same, out of range, more than pool_slots) and StateError
  // when other leases hold the slots it needs.
  void lease(std::int32_t layer, std::span<const std::int32_t> experts, Lease& lease);
  // Blocks until one expert of the lease has landed; its slot. Throws ReadError if it failed,
  // DeviceError if the device failed it.
  std::int32_t wait(Lease& lease, std::int32_t expert);
  // Blocks until one more expert of the lease has landed or failed since its entries were last
  // looked at; returns at once when none is on its way.
  void wait_any(Lease& lease);
  void release(Lease& lease);
  // The same when all that is queued on a device's stream so far has been done.
  void release(std::unique_ptr<Lease> lease, Stream stream);

  // Copies bytes of the arena to host memory, wherever the arena is. The caller holds a lease on
  // what stands there. Throws InvalidArgument, DeviceError.
  void read(std::uint64_t at, std::span<std::byte> to) const;

  // The whole set of wished prefetches from now on.
  void want(std::span<const Prefetch> wanted);
  // Where no background thread runs: does once what it does. True while a prefetch is wished or
  // running.
  bool progress();
  // Tells the eviction policy when experts are used next (EvictionPolicy::reveal). Same length.
  void reveal(std::span<const ExpertKey> keys, std::span<const std::int64_t> when);

  Residency state(ExpertKey key) const;
  Counters counters() const;
  std::vector<Event> timeline() const;
  // Why the predictor was switched off; empty while it works or where there is none.
  std::string foresight_failure() const;

  // Why the device does not forecast though options().device_forecasts asks for it, empty where it
  // does; known once set_ffn was called.
  std::string device_forecasts_lack() const;

  // Ends the background thread; later calls throw StateError. Idempotent.
  void close();

 private:
  using Lock = std::unique_lock<std::mutex>;

  void open_or_throw() const;
  // True: the step streams.
  bool begin_step(std::int32_t layer, std::int32_t tokens, std::span<const std::int32_t> counts);
  bool exceeds_share(std::int32_t layer, std::int32_t tokens,
                     std::span<const std::int32_t> counts) const;
  void collect();  // tells the live leases what has ended
  void start_wishes();
  void plan_wishes();  // when there is news
  void hear(Glimpse glimpse, std::size_t hidden_width);
  void measure_pace();
  void admit(Lock& lock, Lease& lease);
  void demand(Lock& lock, ExpertKey key);
  void lease_locked(Lock& lock, std::int32_t layer, std::span<const std::int32_t> experts,
                    Lease& lease);
  void release_locked(Lease& lease);
  void wait_for_change(Lock& lock, Lease& lease);
  void record(EventKind kind, Nanos begin, Nanos end, ExpertKey key, std::uint64_t bytes = 0);
  void prefetch_thread();

  // forward.cc
  void begin_layer(std::int32_t layer, const LayerBatch& batch, const void* hidden,
                   std::int32_t hidden_rows);
  std::int32_t plan_wave(std::int32_t layer, const LayerBatch& batch, std::int32_t first);
  void sort_pairs(const LayerBatch& batch, std::int32_t first, std::int32_t last);
  void serve_wave(std::int32_t layer);
  void land(Lock& lock, Lease& lease);  // blocks until all of it is held
  void compute(Lock& lock, std::span<const std::int32_t> landed);
  FfnJob job(const Lease::Entry& entry, std::size_t index) const;
  CudaExpert addresses(ExpertKey key, std::int32_t slot) const;  // of its matrices in the arena

  // device_forward.cc
  struct DeviceRoad;
  void forward_on_device(std::int32_t layer, const LayerBatch& batch);
  void serve_wave_on_device(std::int32_t layer, const LayerBatch& batch, std::int32_t first,
                            std::int32_t last);
  // hit_path.cc
  struct HitService;
  struct HitServiceDelete {
    void operator()(HitService* service) const;
  };
  void open_hit_path();
  void list(ExpertKey key);  // the device may find it
  bool fits_hit_path(std::int32_t layer, const LayerBatch& batch) const;
  void forward_by_hits(std::int32_t layer, const LayerBatch& batch);
  void tell_hit_failure();
  void quiesce();  // until the device has done what was queued, and the host has heard of it
  bool forecast_there(const LayerBatch& batch);
  void observe_report(Lock& lock, const HitReport& report);
  void count_hit(ExpertKey key);
  void serve_report(Lock& lock, const HitReport& report);
  bool serve_reports(Lock& lock);
  void doze(Lock& lock);
  void give_up_hits();
  void release_passed();             // leases of work that the device has finished
  bool wait_for_device(Lock& lock);  // until one more lease ends; false: it holds none

  std::shared_ptr<const WeightStore> store_;
  std::shared_ptr<Backend> backend_;
  EngineOptions options_;
  Recorder recorder_;
  Cache cache_;
  std::span<std::byte> arena_;
  Mover mover_;
  WorkerPool pool_;
  std::unique_ptr<Foresight> foresight_;  // null without a predictor
  std::unique_ptr<Planner> planner_;      // null where nothing is brought early
  FfnLayout ffn_;
  bool has_ffn_ = false;
  std::vector<std::int64_t> streams_;  // belongs to the thread that runs the layers

  mutable std::mutex mutex_;  // guards everything below and the rooms above
  std::mutex step_mutex_;     // one forward at a time: it owns the worker pool and the scratch
  bool closed_ = false;
  std::int64_t ticks_ = 0;  // layer steps
  std::uint64_t streamed_steps_ = 0;
  std::vector<float> shares_;  // of a step that streams, per expert
  std::vector<Lease*> live_;   // leases with experts on their way
  std::vector<Mover::Ending> ended_;
  std::condition_variable caught_up_;  // reports were served
  std::condition_variable wake_;       // the prefetch thread: there is something to move, or close
  std::thread prefetcher_;

  // For the planner.
  bool replan_ = false;  // the router has spoken since the last plan
  Planner::Pace pace_;
  struct Mark {
    std::int64_t ticks = 0;
    std::uint64_t bytes = 0;
    Nanos now = 0, busy = 0, demand = 0;
    std::uint64_t read_bytes = 0;  // into the staging tier, and the time of it by class
    Nanos read_demand = 0, read_early = 0;
  } mark_;                       // where the pace was last measured
  std::uint64_t overtaken_ = 0;  // bytes that the planner knows of
  std::vector<Foresight::Word> words_;
  std::vector<Prefetch> wanted_;

  // Scratch of forward, kept so that the hot path allocates nothing.
  struct Scratch;
  std::unique_ptr<Scratch> scratch_;
  std::unique_ptr<DeviceRoad> device_;  // null without a device
  std::string forecasts_lack_ = "layers are not queued on a device";
  std::unique_ptr<HitService, HitServiceDelete> hits_;  // null where the host serves every layer
};

}  // namespace prophet
