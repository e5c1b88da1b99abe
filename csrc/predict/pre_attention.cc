#include "predict/pre_attention.h"

#include <cmath>
#include <utility>

#include "core/error.h"
#include "predict/approach_predictor.h"

namespace prophet {
namespace {

constexpr float kEpsilon = 1e-6f;

class PreAttention final : public ApproachPredictor {
 public:
  explicit PreAttention(std::shared_ptr<const LayerMlpWeights> weights)
      : ApproachPredictor(weights->geometry), network_(std::move(weights)) {
    const LayerMlpWeights& w = network_.weights();
    if (w.stride != 0 || w.context != 0 || !w.affinity.empty()) {
      throw InvalidArgument(
          "a network that names the experts of the layer about to run reads what enters it and "
          "nothing else; train the predictor again");
    }
  }

  std::string name() const override { return network_.weights().name; }
  std::int32_t entering_width() const override { return network_.weights().hidden; }

 private:
  void forget() override {}

  std::int32_t look(const Approach& approach, std::span<float> p) override {
    if (!approach.entering) return 0;
    const std::span<const float> x(approach.entering, std::size_t(entering_width()));
    double squares = 0;
    for (float v : x) squares += double(v) * v;
    const auto scale = float(1 / std::sqrt(squares / double(x.size()) + kEpsilon));
    if (!std::isfinite(squares)) return 0;
    network_.begin(approach.layer);
    for (std::size_t i = 0; i < x.size(); ++i) network_.add(i, x[i] * scale);
    network_.finish(p.first(experts()));
    return 1;
  }

  LayerMlpNetwork network_;
};

}  // namespace

std::unique_ptr<Predictor> make_pre_attention(std::shared_ptr<const LayerMlpWeights> weights) {
  return std::make_unique<PreAttention>(std::move(weights));
}

}  // namespace prophet
