#include "predict/narrow_predictor.h"

#include <algorithm>

#include "core/error.h"

namespace prophet {

NarrowPredictor::NarrowPredictor(std::unique_ptr<Predictor> inner, std::int32_t most)
    : inner_(std::move(inner)), most_(most) {
  if (most < 1) throw InvalidArgument("a predictor names at least one expert of a layer");
}

void NarrowPredictor::forecast(std::int32_t layer, std::vector<Forecast>& out) {
  all_.clear();
  inner_->forecast(layer, all_);
  std::sort(all_.begin(), all_.end(), [](const Forecast& a, const Forecast& b) {
    if (a.horizon != b.horizon) return a.horizon < b.horizon;
    return a.p != b.p ? a.p > b.p : a.key < b.key;
  });
  std::int32_t horizon = 0, named = 0;
  for (const Forecast& one : all_) {
    named = one.horizon == horizon ? named + 1 : 1;
    horizon = one.horizon;
    if (named <= most_) out.push_back(one);
  }
}

}  // namespace prophet
