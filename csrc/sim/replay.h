// What if the machine were another? A routing trace through the real engine, on a virtual clock.
//
// The engine, queue, cache, policies and predictors are those that run on real bytes; only the
// backend is a clock (device/sim). One forward pass, per MoE layer:
//
//   attention (the processor computes, the link works) → the router speaks → its experts are leased
//   → those that are here are computed, then each as it lands → the leases end
//
// Tokens whose experts exceed the layer's slots are served in waves, as Engine::forward does. The
// routes are handed in chunk by chunk and forgotten: memory does not depend on the length of a
// trace. Same routes, same options: same result to the nanosecond and byte.
//
// Not thread-safe; starts no thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/types.h"
#include "device/sim/sim_backend.h"
#include "engine/engine.h"
#include "predict/predictor.h"
#include "sim/clairvoyant.h"
#include "sim/emulator.h"
#include "sim/histogram.h"
#include "sim/residence.h"
#include "sim/waves.h"

namespace prophet {

// Times of the processor for a forward pass of n tokens.
struct ComputeTimes {
  Nanos pass = 0;          // once per pass: embedding, head, sampling
  Nanos layer = 0;         // attention and router of a layer, whatever n
  Nanos layer_token = 0;   // the same, per token
  Nanos expert = 0;        // one expert, however many of its tokens
  Nanos expert_token = 0;  // the same, per token that chose it
  Nanos wait = 0;          // a layer that waited for bytes: asking, being woken, colder caches
};

struct ReplayOptions {
  Geometry geometry;
  std::uint64_t expert_bytes = 0;
  SimOptions link;
  ComputeTimes times;
  EngineOptions engine;  // background and watcher are ignored: a replay has no threads, and watches
  // Makes the predictor of a new engine; empty: none.
  std::function<std::unique_ptr<Predictor>()> predictor;
  // In its place, one that knows the future: of the chunk, from whose end on nothing is known.
  std::optional<EmulatorOptions> emulate;
  // Times are those of the bound of sim/clairvoyant.h: the engine's link delivers at once, and
  // counts misses. Only with policy "belady" in the global pool is that a bound.
  bool clairvoyant = false;
};

// Requests of one layer by where the expert was when the router asked.
struct LayerCounts {
  std::uint64_t resident = 0, in_flight = 0, miss = 0;
};

struct ReplayResult {
  std::uint64_t tokens = 0, passes = 0;  // decoded
  std::uint64_t prefill_tokens = 0;
  Nanos prefill_ns = 0;
  std::uint64_t prefill_bytes = 0;  // landed during prefill passes
  Histogram tpot;                   // one entry per decode pass
  Histogram stall;                  // the same: waiting for bytes
  std::vector<LayerCounts> layers;
  Counters counters{};  // now_ns is the virtual time of the whole replay
  Stays stays;          // their times mean nothing where a bound is asked for
};

class Replay {
 public:
  // Throws InvalidArgument: a geometry, slots, policy, link or times that cannot be.
  explicit Replay(ReplayOptions options);
  ~Replay();

  // Routes are [tokens, layers, top_k], dense; gates the same, or empty when not recorded. `next`
  // is what NextUse says about these passes, or empty: only the bounds need it. What the routers
  // read is [tokens, layers, width], or empty. `streams` is the request of each token, or empty:
  // Engine::streams. Throws InvalidArgument: sizes that disagree, ids out of range.
  struct Chunk {
    std::span<const std::int32_t> routes;
    std::span<const float> gates;
    std::span<const std::int64_t> next;
    std::span<const float> hidden = {};
    std::span<const std::int64_t> streams = {};
    std::span<const std::int32_t> ids = {};  // [tokens] fed, or empty
    std::span<const float> entering = {};    // [tokens, layers, width] what enters layers, or empty
  };
  // Decodes: forward passes of `batch` tokens each (of as many sequences), the last of what is
  // left.
  void decode(const Chunk& chunk, std::int32_t batch = 1);
  // One forward pass over all tokens of the chunk.
  void prefill(const Chunk& chunk);

  // Continuous batching: forward passes over tokens of several requests, `tokens` of the chunk
  // each, of which `decoded` continue as many requests and the others are prompts'. Each decoded
  // token counts its pass's duration and stall. Appends when each pass ended to `ends`. Throws
  // InvalidArgument: passes that are not the chunk's tokens.
  struct Pass {
    std::int32_t tokens = 0, decoded = 0;
  };
  void packed(const Chunk& chunk, std::span<const Pass> passes, std::vector<Nanos>& ends);

  // Empties the cache and forgets all history, as if the next token came to a new process. What was
  // counted stays.
  void restart();

  ReplayResult result() const;
  Engine& engine() { return *engine_; }                              // until the next restart
  const std::vector<std::int32_t>& rooms() const { return rooms_; }  // slots open to each layer

 private:
  void build();
  std::int32_t begin(const Chunk& chunk);  // its tokens
  void pass(const Chunk& chunk, std::int32_t first, std::int32_t tokens);
  void count(const Chunk& chunk, std::size_t begin, std::int32_t tokens);
  void approach(const Chunk& chunk, std::int32_t layer, std::int32_t first, std::int32_t tokens);
  void observe(const Chunk& chunk, std::int32_t layer, std::int32_t first, std::int32_t tokens);
  void serve(std::int32_t layer, const Wave& wave, std::span<const std::int64_t> next);
  void compute(Nanos time);
  void settle();
  Counters counters() const;  // of the running engine
  Nanos now() const { return bound_ ? bound_->now() : backend_->now(); }
  std::uint64_t landed() const;  // bytes
  [[noreturn]] void refuse_next(const Chunk& chunk) const;

  ReplayOptions options_;
  Residence residence_;  // outlives the engine
  std::shared_ptr<SimBackend> backend_;
  std::unique_ptr<Engine> engine_;
  Emulator* emulator_ = nullptr;      // the engine's, where there is one
  std::optional<Clairvoyant> bound_;  // where times are its
  Nanos on_link_ = 0;                 // of one expert
  std::vector<std::int32_t> rooms_;
  ReplayResult done_;  // its counters: of engines that are gone, and what the replay counts itself
  WaveCutter cutter_;
  std::size_t next_at_ = 0;   // place in the chunk's `next`
  Nanos stall_ = 0;           // of this pass
  Nanos computed_ns_ = 0;     // of this layer step, where a bound is asked for
  std::uint64_t missed_ = 0;  // the same
  Nanos bound_computed_ = 0;  // all of it since the last restart
  bool prefilled_ = false;    // since the last decoding
  Lease lease_;
  std::vector<bool> computed_;  // [entries of the lease]
  std::vector<ExpertKey> keys_;
  std::vector<std::int32_t> ids_;
  std::vector<std::int32_t> counts_;  // [experts_per_layer] of this layer step
  std::vector<float> weights_;
};

}  // namespace prophet
