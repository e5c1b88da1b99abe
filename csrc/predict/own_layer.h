// What each layer's own past says of its next use: decayed averages of every expert's choice, the
// newest row and the one before it. See "own" in prophet_moe/predict/bank.py.
#pragma once

#include <cstdint>
#include <vector>

#include "core/types.h"
#include "kernels/predictor_math.h"
#include "predict/predictor.h"

namespace prophet {

class OwnLayer {
 public:
  // The distinct experts that one token chose, and their gates, which sum to top_k.
  struct Row {
    std::vector<std::int32_t> experts;
    std::vector<float> gates;
  };

  OwnLayer(const Geometry& geometry, std::vector<float> decays);

  void reset();
  // Row `token` of a step. Ids outside the layer are dropped and repeated ones counted once; gates
  // are 1 each where weights are unknown, negative or do not sum to a positive number.
  void read(const Glimpse& glimpse, std::int32_t token, Row& row) const;
  // All rows of a step, a turn each; but for its last 1024 rows a step has faded.
  void observe(const Glimpse& glimpse);
  const Row& newest(std::int32_t layer) const { return newest_[std::size_t(layer)]; }
  // Features of `call` for this layer, until the next call of this object.
  void describe(std::int32_t layer, Heads& call);

 private:
  const Geometry geometry_;
  const std::vector<float> decays_;
  const std::size_t lanes_;
  std::vector<float> averages_;       // [L, D, lanes]
  std::vector<Row> newest_, before_;  // [L]
  std::vector<float> more_;           // [2, lanes] gates of the newest row, choices of the other
  std::vector<float> scratch_;
};

}  // namespace prophet
