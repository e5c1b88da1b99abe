// The text so far → the experts of every layer, before the first one runs, as ExpertFlow's routing
// path predictor has it. A recurrent network with one state per stream of tokens:
//
//   x   = embed[token]                                      a token it has not learned: the last
//   row r,z = sigmoid(x input + input_bias + h recur + recur_bias)         gated recurrent unit,
//   with n   = tanh(x input + input_bias + r * (h recur + recur_bias))      columns in the order r,
//   z, n h   = (1 - z) n + z h p   = sigmoid([h | x] leave + leave_bias)               of each
//   layer and expert
//
// A pass of several tokens asks for what any of them asks: 1 - prod(1 - p). Of a pass of more than
// kMostRows there is no word, since it wants nearly everything; of one of more than kMostRead the
// last ones are read. prophet_moe/predict/text_network.py trains it and writes its file.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/types.h"
#include "predict/predictor.h"

namespace prophet {

struct TextWeights {
  static constexpr std::int32_t kMostRows = 64, kMostRead = 256;

  Geometry geometry;
  std::string name;
  std::int32_t vocabulary = 0;  // V: tokens 0 .. V - 1 have rows of their own
  std::int32_t embedding = 0;   // D
  std::int32_t width = 0;       // H
  std::vector<float> embed;     // [V + 1, D]
  std::vector<float> input;     // [D, 3 H]
  std::vector<float> input_bias;
  std::vector<float> recur;  // [H, 3 H]
  std::vector<float> recur_bias;
  std::vector<float> leave;       // [H + D, layers * experts]
  std::vector<float> leave_bias;  // [layers * experts]
};

// Throws InvalidArgument: sizes that cannot be, arrays of other sizes, numbers that are not finite.
std::unique_ptr<Predictor> make_text_predictor(std::shared_ptr<const TextWeights> weights);

}  // namespace prophet
