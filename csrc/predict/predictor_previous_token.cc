// "previous-token": a layer chooses again what it chose for the token before.
//
// How far that holds is counted: the share of a layer's experts that stayed from one turn to the
// next, with a decay, is the probability of staying; the others share what is left.
#include <algorithm>

#include "predict/online_predictor.h"
#include "predict/predictor_registry.h"

namespace prophet {
namespace {

constexpr float kKeep = 0.99f;

class PreviousToken final : public OnlinePredictor {
 public:
  explicit PreviousToken(const Geometry& geometry) : OnlinePredictor(geometry) { forget(); }
  std::string name() const override { return "previous-token"; }

 private:
  struct Layer {
    Row last;
    float kept = 0, could = 0;  // decayed counts of experts
  };

  void forget() override { layers_.assign(std::size_t(geometry_.layers), {}); }

  void learn(const Glimpse& glimpse, std::span<const Row> rows) override {
    Layer& layer = layers_[std::size_t(glimpse.layer)];
    for (const Row& row : rows) {
      const auto stayed = std::count_if(layer.last.begin(), layer.last.end(), [&](std::int32_t i) {
        return std::find(row.begin(), row.end(), i) != row.end();
      });
      layer.kept = kKeep * layer.kept + float(stayed);
      layer.could = kKeep * layer.could + float(layer.last.size());
      layer.last = row;
    }
  }

  bool look_ahead(std::int32_t layer, std::int32_t horizon, std::span<float> p) override {
    const Layer& next = layers_[std::size_t(layer + horizon)];
    if (next.last.empty()) return false;
    // One turn's worth of the belief that half of them stay.
    const float some = float(geometry_.top_k);
    const float stays = (next.kept + 0.5f * some) / (next.could + some);
    const float chosen = float(next.last.size()), others = float(experts()) - chosen;
    const float left = std::max(float(geometry_.top_k) - stays * chosen, 0.0f);
    std::fill(p.begin(), p.end(), others > 0 ? std::min(left / others, 1.0f) : 0.0f);
    for (std::int32_t i : next.last) p[std::size_t(i)] = std::min(stays, 1.0f);
    return true;
  }

  std::vector<Layer> layers_;
};

}  // namespace

std::unique_ptr<Predictor> make_previous_token(const Geometry& geometry, const PredictorInputs&) {
  return std::make_unique<PreviousToken>(geometry);
}

}  // namespace prophet
