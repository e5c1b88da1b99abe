// Two predictors that know different things: the first remembers the routing of all layers and says
// when experts are used again; the second looks at the layers just ahead, as next-gate does.
//
// Where both speak of a layer, their probabilities are joined in log odds against chance:
//
//   odds(p) = a odds(p_first) + b odds(p_second) + c        odds(p) = logit(p) - logit(top_k /
//   experts)
//
// with a, b, c per horizon, learned online by logistic regression (AdaGrad) whenever the router of
// a forecast layer has spoken; of what was said of a layer twice, by the later word. A second
// predictor that tells nothing loses its weight; all else is the first one's.
#pragma once

#include <memory>
#include <vector>

#include "predict/predictor.h"

namespace prophet {

class JointPredictor final : public Predictor {
 public:
  static constexpr std::int32_t kHorizons = 3;  // that are joined

  // Throws InvalidArgument when both read hidden states, or what enters layers, of different
  // widths.
  JointPredictor(const Geometry& geometry, std::unique_ptr<Predictor> first,
                 std::unique_ptr<Predictor> second);

  std::string name() const override { return first_->name() + "+" + second_->name(); }
  std::int32_t hidden_width() const override;
  BankPredictor* bank() override { return first_->bank(); }
  bool reads_tokens() const override { return first_->reads_tokens() || second_->reads_tokens(); }
  std::int32_t entering_width() const override;
  void reset() override;
  void observe(const Glimpse& glimpse) override;
  bool approach(const Approach& approach) override;
  bool next_use(std::int32_t layer, std::span<float> gaps) override;
  void forecast(std::int32_t layer, std::vector<Forecast>& out) override;

 private:
  struct Weights {
    double of[3];       // of the first, of the second, and alone
    double squares[3];  // sums of squared gradients
  };
  // What was said of a layer at one horizon and waits for its router.
  struct Waiting {
    bool open = false;
    std::vector<float> first, second, p;  // [experts] odds, odds, joined
  };

  void forget();
  void learn(const Glimpse& glimpse);
  float odds(float p) const;
  Waiting& waiting(std::int32_t layer, std::int32_t horizon) {
    return waiting_[std::size_t(layer) * kHorizons + std::size_t(horizon - 1)];
  }

  const Geometry geometry_;
  const std::unique_ptr<Predictor> first_, second_;
  const float chance_;
  Weights weights_[kHorizons];
  std::vector<Waiting> waiting_;  // [L, horizons]
  std::vector<Forecast> mine_, other_;
  std::vector<char> chosen_;
  bool ready_[2] = {};  // of each: it has seen something to forecast from
};

}  // namespace prophet
