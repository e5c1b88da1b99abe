// A predictor that knows the future, as only a replay can have it.
//
// It stands for a whole-model shadow of a given recall (OD-MoE, arXiv 2512.03927), and with recall
// 1 for a perfect one. Of every coming layer within reach it names as many experts as that layer
// will ask for; each is a true one with probability `recall`, and else one that will not be asked
// for. Which ones, is drawn from a fixed seed: the same routes get the same forecasts.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/types.h"
#include "predict/predictor.h"

namespace prophet {

struct EmulatorOptions {
  double recall = 1;       // share of true experts that it names, 0 to 1
  std::int32_t ahead = 0;  // layers it looks ahead; 0: all that are left of the running pass
};

class Emulator final : public Predictor {
 public:
  // Throws InvalidArgument: a recall outside 0..1, a negative number of layers.
  Emulator(const Geometry& geometry, const EmulatorOptions& options);

  // A forward pass begins that will choose `routes` [tokens, layers, top_k]; the pass after it will
  // choose `next`, or nobody knows. Both must stay until the next call.
  void begin(std::span<const std::int32_t> routes, std::span<const std::int32_t> next);

  std::string name() const override { return "emulator"; }
  void reset() override;
  void observe(const Glimpse& glimpse) override;
  void forecast(std::int32_t layer, std::vector<Forecast>& out) override;

 private:
  void name_experts(std::span<const std::int32_t> routes, std::int32_t layer, std::int32_t horizon,
                    std::int64_t pass, std::vector<Forecast>& out);

  const Geometry geometry_;
  const EmulatorOptions options_;
  std::span<const std::int32_t> routes_, next_;
  std::int64_t pass_ = 0;
  std::vector<bool> chosen_, named_;  // [experts] scratch
};

}  // namespace prophet
