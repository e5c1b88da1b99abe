// "popularity": an expert is needed as often as it was lately, whatever was chosen before it.
//
// With share q of the turns, E[min(gap, H)] = (1 - (1 - q)^H) / q for independent turns.
#include <algorithm>
#include <cmath>

#include "predict/online_predictor.h"
#include "predict/popularity.h"
#include "predict/predictor_registry.h"

namespace prophet {
namespace {

constexpr float kLongest = 64;  // H, turns
constexpr float kRarest = 1e-4f;

class PopularityPredictor final : public OnlinePredictor {
 public:
  explicit PopularityPredictor(const Geometry& geometry)
      : OnlinePredictor(geometry), popularity_(std::size_t(geometry.total()), chance()) {}
  std::string name() const override { return "popularity"; }

 private:
  void forget() override { popularity_.reset(); }

  void learn(const Glimpse& glimpse, std::span<const Row> rows) override {
    for (const Row& row : rows) popularity_.turn(at(glimpse.layer), experts(), row);
  }

  bool look_ahead(std::int32_t layer, std::int32_t horizon, std::span<float> p) override {
    const float* shares = popularity_.shares(at(layer + horizon));
    for (std::size_t i = 0; i < p.size(); ++i) p[i] = std::min(shares[i], 1.0f);
    return true;
  }

  bool gaps_of(std::int32_t layer, std::span<float> gaps) override {
    const float* shares = popularity_.shares(at(layer));
    for (std::size_t i = 0; i < gaps.size(); ++i) {
      const float q = std::clamp(shares[i], kRarest, 1.0f);
      gaps[i] = std::max(1.0f, (1 - std::pow(1 - q, kLongest)) / q);
    }
    return true;
  }

  Popularity popularity_;
};

}  // namespace

std::unique_ptr<Predictor> make_popularity(const Geometry& geometry, const PredictorInputs&) {
  return std::make_unique<PopularityPredictor>(geometry);
}

}  // namespace prophet
