// The clairvoyant's knowledge: when is each expert used again?
//
// A replay counts the waves it serves: that count is its time. For every expert of every wave
// this gives the wave of the expert's next use, kNever when there is none. The trace is walked from
// its end, chunk by chunk, so that memory does not depend on its length: hand in the last chunk
// first.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "core/types.h"
#include "sim/waves.h"

namespace prophet {

class NextUse {
 public:
  static constexpr std::int64_t kNever = INT64_MAX;

  // `rooms[l]` slots are open to layer l: they decide the waves of passes with many tokens.
  // `waves` is the number of waves of the whole trace: times are counted down from it. For decode
  // it is tokens x layers; any number gives the same order, shifted.
  NextUse(const Geometry& geometry, std::vector<std::int32_t> rooms, std::int64_t waves);

  // A chunk of forward passes, each of `tokens_per_pass` tokens (the last may have fewer): routes
  // are [tokens, layers, top_k]. Appends the next use of each expert of each wave to `out`, in the
  // order in which Replay serves them: pass, layer, wave, ascending expert. Throws InvalidArgument
  // when the chunk is no whole number of tokens, or WaveCutter refuses it.
  void prepend(std::span<const std::int32_t> routes, std::int32_t tokens_per_pass,
               std::vector<std::int64_t>& out);

 private:
  struct Use {
    std::int32_t index;  // Geometry::index
    std::int32_t wave;   // of the chunk, from 0
  };
  const Geometry geometry_;
  const std::vector<std::int32_t> rooms_;
  std::int64_t time_;               // of the first wave handed in so far
  std::vector<std::int64_t> next_;  // [experts] first use at or after time_
  WaveCutter cutter_;
  std::vector<Use> uses_;
};

}  // namespace prophet
