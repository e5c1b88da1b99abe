// What predictors share that are not trained but learn while they watch.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "predict/predictor.h"

namespace prophet {

class OnlinePredictor : public Predictor {
 public:
  static constexpr std::int32_t kHorizons = 3;
  static constexpr std::int32_t kMostRows = 64;  // of one step; older ones are not looked at

  void reset() final;
  // Throws InvalidArgument for a layer that is none and a glimpse without tokens.
  void observe(const Glimpse& glimpse) final;
  // Both throw StateError for another layer than the one observed last.
  bool next_use(std::int32_t layer, std::span<float> gaps) final;
  void forecast(std::int32_t layer, std::vector<Forecast>& out) final;

 protected:
  // The distinct experts that one token chose.
  using Row = std::vector<std::int32_t>;

  // Looks at most `horizons` layers ahead, never beyond the last layer.
  explicit OnlinePredictor(const Geometry& geometry, std::int32_t horizons = kHorizons);

  virtual void forget() = 0;
  // `rows` are the newest of the step, oldest first, at least one.
  virtual void learn(const Glimpse& glimpse, std::span<const Row> rows) = 0;
  // P(needed by the same token) of every expert of `layer` + `horizon`, each in [0, 1]; false: no
  // opinion.
  virtual bool look_ahead(std::int32_t layer, std::int32_t horizon, std::span<float> p) = 0;
  virtual bool gaps_of(std::int32_t layer, std::span<float> gaps) {
    (void)layer, (void)gaps;
    return false;
  }

  // Rows of `layer` in the running pass, as `learn` got them; empty before its router has spoken.
  std::span<const Row> rows(std::int32_t layer) const;
  std::size_t experts() const { return std::size_t(geometry_.experts_per_layer); }
  std::size_t at(std::int32_t layer) const { return std::size_t(layer) * experts(); }
  float chance() const { return float(geometry_.top_k) / float(geometry_.experts_per_layer); }

  const Geometry geometry_;

 private:
  struct Step {
    std::int64_t pass = -1;
    std::size_t count = 0;  // of `rows` in use
    std::vector<Row> rows;
  };

  void require_seen(std::int32_t layer) const;

  const std::int32_t horizons_;
  std::vector<Step> steps_;  // [L]
  std::int64_t pass_ = 0;    // a pass ends when a layer comes that is not behind the last one
  std::int32_t seen_ = -1;
  std::vector<float> p_;
};

}  // namespace prophet
