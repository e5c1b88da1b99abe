// A trained predictor as Python holds it: the file's content, from which engines make their own.
#pragma once

#include <memory>

#include "predict/bank_predictor.h"

namespace prophet {

class PyPredictor {
 public:
  PyPredictor(BankConfig config, const BankWeights& weights)
      : network_(std::make_shared<const BankNetwork>(std::move(config), weights)), own_(network_) {}

  const BankConfig& config() const { return network_->config(); }
  // A fresh predictor for an engine; the weights are shared.
  std::unique_ptr<Predictor> make() const { return std::make_unique<BankPredictor>(network_); }
  BankPredictor& own() { return own_; }  // to be asked directly: tests, scores

 private:
  std::shared_ptr<const BankNetwork> network_;
  BankPredictor own_;
};

}  // namespace prophet
