// How often would a cache of N slots miss? LRU and the clairvoyant, for every N in one pass.
//
// Both keep nested caches: what N slots hold, N + 1 slots hold too (Mattson, Gecsei, Slutz and
// Traiger, 1970), so one stack stands for caches of all sizes and an access is a hit wherever the
// stack above it fits. Counts are those of a replay through the engine, one token per forward pass:
//
//   - the experts of a layer step are asked for together and none of them can be a victim;
//   - LRU: within a step, hits are touched before misses, each ascending. Which of them were hits
//     differs with N, so the order inside a step does too: at most top_k - 1 sizes per access.
//     These are decided one by one, all others by the stack;
//   - clairvoyant: the victim is the one whose next use is farthest.
//
// Memory: O(experts * top_k), whatever the length of the trace.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/types.h"
#include "sim/waves.h"

namespace prophet {

// Hits of one pool by its number of slots, 0 .. keys.
class SizeHistogram {
 public:
  explicit SizeHistogram(std::int32_t keys) : from_(std::size_t(keys) + 1), only_(from_.size()) {}

  void hit_from(std::int32_t slots) { ++from_[slots]; }  // in every pool of so many or more
  void hit_at(std::int32_t slots) { ++only_[slots]; }    // in pools of exactly so many
  std::vector<std::uint64_t> hits() const;

 private:
  std::vector<std::uint64_t> from_, only_;
};

// LRU over keys 0 .. keys - 1.
class LruStack {
 public:
  LruStack(std::int32_t keys, std::int32_t top_k);
  // One layer step: top_k keys, ascending.
  void serve(std::span<const std::int32_t> step);
  std::vector<std::uint64_t> hits() const { return sizes_.hits(); }

 private:
  // Where the last access of a key was a hit: for slots > above + step_size, and for above + i
  // (0 < i < step_size) where bit i of `inside` is set.
  struct Last {
    std::int32_t above = 0, step_size = 0;
    std::uint64_t inside = 0;
    bool hit(std::int32_t slots) const;
  };
  Last find(std::int32_t key);

  const std::int32_t keys_, top_k_;
  std::int32_t clock_ = 0;
  std::vector<std::int32_t> used_;   // [keys] clock of the last use, 0 never
  std::vector<std::int32_t> peers_;  // [keys, top_k] the keys of that step
  std::vector<Last> last_, found_;
  SizeHistogram sizes_;
};

// The clairvoyant over keys 0 .. keys - 1.
class ClairvoyantStack {
 public:
  explicit ClairvoyantStack(std::int32_t keys);
  // One layer step, and the time of each key's next use (NextUse::kNever: none). Times of later
  // steps are larger.
  void serve(std::span<const std::int32_t> step, std::span<const std::int64_t> next);
  std::vector<std::uint64_t> hits() const { return sizes_.hits(); }

 private:
  const std::int32_t keys_;
  std::vector<std::int64_t> stack_;  // next use and key, packed; soonest use wins a place
  std::vector<std::int32_t> depth_;
  SizeHistogram sizes_;
};

class StackDistances {
 public:
  // Throws InvalidArgument: a geometry that cannot be, or top_k above 64.
  explicit StackDistances(const Geometry& geometry);

  // Decoded tokens in the order of the trace: routes [tokens, layers, top_k]; `next` as NextUse
  // gives it for passes of one token. Throws InvalidArgument: sizes that disagree, ids out of range
  // or twice in a token, more than 2^31 - 1 layer steps in all.
  void decode(std::span<const std::int32_t> routes, std::span<const std::int64_t> next);

  // Misses by the number of slots, from 0; below top_k no layer step can run and the count is that
  // of all accesses. One pool for all layers: total + 1 numbers.
  std::vector<std::uint64_t> lru() const;
  std::vector<std::uint64_t> clairvoyant() const;
  // A pool for each layer: experts_per_layer + 1 numbers each.
  std::vector<std::vector<std::uint64_t>> lru_per_layer() const;
  std::vector<std::vector<std::uint64_t>> clairvoyant_per_layer() const;
  std::uint64_t accesses() const;

 private:
  std::vector<std::uint64_t> misses(std::vector<std::uint64_t> hits, std::uint64_t accesses) const;

  const Geometry geometry_;
  std::uint64_t tokens_ = 0;
  LruStack lru_;
  ClairvoyantStack clairvoyant_;
  std::vector<LruStack> layer_lru_;
  std::vector<ClairvoyantStack> layer_clairvoyant_;
  WaveCutter cutter_;
  std::vector<std::int32_t> global_;
};

}  // namespace prophet
