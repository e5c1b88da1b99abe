// What predictors share that speak before a layer runs, of what is known by then, and have nothing
// to add when its router has spoken.
//
// One word per approach: it is of the approached layer and perhaps of later ones of the same pass,
// and holds until the next approach or router.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "predict/predictor.h"

namespace prophet {

class ApproachPredictor : public Predictor {
 public:
  void reset() final;
  // Throws InvalidArgument for a layer that is none and a glimpse without tokens.
  void observe(const Glimpse& glimpse) final;
  // The same, of an approach. True when there is a word.
  bool approach(const Approach& approach) final;
  // Both throw StateError for another layer than the one observed last, or before the one
  // approached since.
  bool next_use(std::int32_t layer, std::span<float> gaps) final;
  void forecast(std::int32_t layer, std::vector<Forecast>& out) final;

 protected:
  // Throws InvalidArgument for a geometry that cannot be.
  explicit ApproachPredictor(const Geometry& geometry);

  virtual void forget() = 0;
  // P(needed in this pass) of the experts of layers approach.layer, approach.layer + 1, ..., each
  // in [0, 1], into p [layers left, experts]; how many layers it speaks of.
  virtual std::int32_t look(const Approach& approach, std::span<float> p) = 0;
  std::size_t experts() const { return std::size_t(geometry_.experts_per_layer); }

  const Geometry geometry_;

 private:
  void require_step(std::int32_t layer, std::int32_t tokens) const;
  void require_seen(std::int32_t layer) const;

  std::vector<float> p_;      // [L, E], that of layer `next_` first
  std::int32_t next_ = 0;     // approached last
  std::int32_t spoken_ = 0;   // layers that the word is of
  std::int32_t source_ = -1;  // observed last, or before the one approached since; -1: none
};

}  // namespace prophet
