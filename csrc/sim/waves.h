// What one layer of one forward pass asks for, in the order in which the engine serves it.
//
// A wave takes tokens from the front while their experts fit in the layer's slots: the rule of
// Engine::forward, so that a replay asks for the same experts in the same order. Waves share their
// tokens' experts in ascending order.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/types.h"

namespace prophet {

struct Wave {
  std::int32_t tokens = 0;                // tokens it serves
  std::span<const std::int32_t> experts;  // distinct, ascending
  std::span<const std::int32_t> counts;   // tokens that chose experts[i]
};

// Cuts one layer's tokens into waves; reusable, allocates nothing once it has seen the largest
// pass.
class WaveCutter {
 public:
  explicit WaveCutter(const Geometry& geometry);

  // Starts with the tokens of one layer: row i is routes[i * stride] .. + top_k. The routes stay
  // the caller's until the last wave. Throws InvalidArgument: an id out of range, one named twice
  // by a token, room below top_k.
  void begin(std::int32_t layer, const std::int32_t* routes, std::int32_t tokens,
             std::size_t stride, std::int32_t room);
  // The next wave, valid until the next call; false when all tokens are served.
  bool next(Wave& wave);

 private:
  void check(const std::int32_t* row) const;

  const Geometry geometry_;
  std::int32_t layer_ = 0, room_ = 0, left_ = 0;
  const std::int32_t* row_ = nullptr;
  std::size_t stride_ = 0;
  std::vector<std::int32_t> count_of_;  // [experts_per_layer], zero between waves
  std::vector<std::int32_t> experts_, counts_;
};

}  // namespace prophet
