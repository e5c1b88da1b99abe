// A predictor that names only the likeliest experts of each layer, as systems do that predict a
// layer's top-k and no probabilities. All else is its inner one's.
#pragma once

#include <memory>

#include "predict/predictor.h"

namespace prophet {

class NarrowPredictor final : public Predictor {
 public:
  // Forecasts of the `most` likeliest experts of each layer, likeliest first. Throws
  // InvalidArgument below one.
  NarrowPredictor(std::unique_ptr<Predictor> inner, std::int32_t most);

  std::string name() const override { return inner_->name(); }
  std::int32_t hidden_width() const override { return inner_->hidden_width(); }
  BankPredictor* bank() override { return inner_->bank(); }
  bool reads_tokens() const override { return inner_->reads_tokens(); }
  std::int32_t entering_width() const override { return inner_->entering_width(); }
  void reset() override { inner_->reset(); }
  bool approach(const Approach& approach) override { return inner_->approach(approach); }
  void observe(const Glimpse& glimpse) override { inner_->observe(glimpse); }
  bool next_use(std::int32_t layer, std::span<float> gaps) override {
    return inner_->next_use(layer, gaps);
  }
  void forecast(std::int32_t layer, std::vector<Forecast>& out) override;

 private:
  const std::unique_ptr<Predictor> inner_;
  const std::int32_t most_;
  std::vector<Forecast> all_;
};

}  // namespace prophet
