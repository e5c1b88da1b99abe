// A predictor as Python holds it: to be asked directly, and the mould from which engines make their
// own.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "predict/bank_predictor.h"
#include "predict/stream_predictor.h"

namespace prophet {

class PyPredictor {
 public:
  using Make = std::function<std::unique_ptr<Predictor>()>;

  PyPredictor(const Geometry& geometry, Make make, std::unique_ptr<Predictor> own = nullptr)
      : geometry_(geometry), make_(std::move(make)), own_(own ? std::move(own) : make_()) {}
  virtual ~PyPredictor() = default;

  const Geometry& geometry() const { return geometry_; }
  std::string name() const { return own_->name(); }
  // A fresh predictor for an engine.
  std::unique_ptr<Predictor> make() const { return make_(); }
  Predictor& own() { return *own_; }  // to be asked directly: tests, scores

 private:
  const Geometry geometry_;
  const Make make_;
  const std::unique_ptr<Predictor> own_;
};

// A trained one; all that are made of it share its weights, and keep a history for each stream.
class PyBank final : public PyPredictor {
 public:
  explicit PyBank(const std::shared_ptr<const BankNetwork>& network)
      : PyPredictor(
            network->config().geometry,
            [network] {
              return std::make_unique<StreamPredictor>(
                  [network] { return std::make_unique<BankPredictor>(network); },
                  network->config().geometry.experts_per_layer);
            },
            std::make_unique<BankPredictor>(network)) {}
  BankPredictor& bank() { return static_cast<BankPredictor&>(own()); }
};

}  // namespace prophet
