// A trained predictor as Python holds it: the file's content, from which engines make their own.
#pragma once

#include <memory>

#include "predict/bank_predictor.h"

namespace prophet {

class PyPredictor {
 public:
  PyPredictor(BankConfig config, BankWeights weights)
      : config_(std::move(config)), weights_(std::move(weights)), own_(config_, weights_) {}

  const BankConfig& config() const { return config_; }
  // A fresh predictor for an engine.
  std::unique_ptr<Predictor> make() const {
    return std::make_unique<BankPredictor>(config_, weights_);
  }
  BankPredictor& own() { return own_; }  // to be asked directly: tests, scores

 private:
  BankConfig config_;
  BankWeights weights_;
  BankPredictor own_;
};

}  // namespace prophet
