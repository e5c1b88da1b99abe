// Buffers of Engine::forward, kept between calls so that the hot path allocates nothing.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/engine.h"

namespace prophet {

// One wave: tokens [first, last) of a batch and the experts they need.
struct Engine::Scratch {
  explicit Scratch(const Geometry& geometry) : place(geometry.experts_per_layer, -1) {}

  std::vector<float> x;                 // [tokens, hidden] of the whole batch
  std::vector<float> weights;           // [tokens, top_k] of the whole batch
  std::vector<float> sum;               // [hidden]
  std::vector<float> last;              // [last_rows, hidden] for the predictor
  std::vector<std::int32_t> counts;     // [experts_per_layer] tokens of the batch that chose each
  std::vector<std::int32_t> ids;        // [tokens, top_k] for the predictor
  std::vector<std::int32_t> last_rows;  // of each stream, in the order of their first rows
  std::vector<std::int64_t> of_stream;  // whose they are
  void find_last_rows(const std::vector<std::int64_t>& streams, std::int32_t tokens,
                      std::int32_t hidden_rows);

  std::vector<std::int32_t> experts;  // distinct experts of the wave, ascending
  std::vector<std::int32_t> place;    // [experts_per_layer] position in `experts`, -1 elsewhere
  // Pairs (token, k) sorted by expert: those of experts[i] are starts[i] .. starts[i + 1].
  std::vector<std::int32_t> starts;
  std::vector<std::int32_t> rows;     // [pairs] row of x
  std::vector<float*> outputs;        // [pairs] where the pair's result goes
  std::vector<float> parts;           // [tokens of the wave, top_k, hidden]
  std::vector<const float*> of_pair;  // [tokens of the wave, top_k] into parts, null: skipped
  std::vector<std::int32_t> landed;   // entries of the lease to compute now
  std::vector<bool> computed;         // [entries]
  std::vector<FfnJob> jobs;
  FfnScratch ffn;
  Lease lease;
};

}  // namespace prophet
