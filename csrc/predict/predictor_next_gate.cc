// "next-gate": a later layer's router applied to what this layer's router read.
//
// With the weights of the norms before the routers, the hidden state is brought from one norm to
// the other first. Probabilities: sigmoid(logit - threshold), the threshold such that they sum to
// top-k; then drawn towards top-k / experts by a share per horizon, the slope of a least-squares
// line through what was forecast and what came, with a decay. So forecasts of a router that reads
// something else by then lose their confidence.
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "kernels/predictor_math.h"
#include "predict/online_predictor.h"
#include "predict/predictor_registry.h"

namespace prophet {
namespace {

constexpr float kKeep = 0.999f;         // per forecast that was judged
constexpr float kSmallestNorm = 1e-6f;  // a smaller weight tells nothing of what it was applied to

bool is_finite(float v) { return std::isfinite(v); }
bool is_finite(std::uint16_t half) { return (half & 0x7c00) != 0x7c00; }

template <typename T>
void require(const char* name, const std::vector<T>& numbers, std::size_t size, const char* shape) {
  if (numbers.size() != size) {
    throw InvalidArgument(std::string("next-gate needs ") + name + " of shape " + shape + ", " +
                          std::to_string(size) + " numbers, and got " +
                          std::to_string(numbers.size()));
  }
  if (!std::all_of(numbers.begin(), numbers.end(), [](T v) { return is_finite(v); })) {
    throw InvalidArgument(std::string("next-gate got a number in ") + name + " that is not finite");
  }
}

class NextGate final : public OnlinePredictor {
 public:
  NextGate(const Geometry& geometry, const PredictorInputs& inputs)
      : OnlinePredictor(geometry, std::clamp(inputs.horizons, 1, kHorizons)),
        hidden_width_(inputs.hidden),
        columns_(pad_to_lanes(std::size_t(std::max(inputs.hidden, 0)))),
        lanes_(pad_to_lanes(experts())),
        bias_(inputs.router_bias),
        norm_(inputs.norm) {
    const std::size_t L = std::size_t(geometry.layers), E = experts();
    if (inputs.hidden < 1) {
      throw InvalidArgument(
          "next-gate needs the router weights of the model, [layers, experts, hidden]");
    }
    const std::size_t H = std::size_t(inputs.hidden);
    if (inputs.router_f16.empty()) {
      require("the router weights", inputs.router, L * E * H, "[layers, experts, hidden]");
      tiles_.assign(L * lanes_ * columns_, 0);
    } else {
      require("the router weights", inputs.router_f16, L * E * H, "[layers, experts, hidden]");
      tiles_f16_.assign(L * lanes_ * columns_, 0);
    }
    if (!bias_.empty()) require("the router's bias", bias_, L * E, "[layers, experts]");
    if (!norm_.empty()) require("the norms", norm_, L * H, "[layers, hidden]");
    for (std::size_t l = 0; l < L; ++l) {
      if (tiles_f16_.empty()) {
        write_tiles(inputs.router.data() + l * E * H, E, H, columns_,
                    tiles_.data() + l * lanes_ * columns_);
      } else {
        write_tiles(inputs.router_f16.data() + l * E * H, E, H, columns_,
                    tiles_f16_.data() + l * lanes_ * columns_);
      }
    }
    x_.assign(columns_, 0);
    moved_.assign(columns_, 0);
    logits_.resize(lanes_);
    forget();
  }

  std::string name() const override { return "next-gate"; }
  std::int32_t hidden_width() const override { return hidden_width_; }

 private:
  // What was forecast for a layer at one horizon and waits for its router.
  struct Waiting {
    bool open = false;
    std::vector<float> p;
  };

  void forget() override {
    readable_ = false;
    waiting_.assign(std::size_t(geometry_.layers) * kHorizons, {});
    for (int f = 0; f < kHorizons; ++f) product_[f] = square_[f] = 0;
  }

  Waiting& waiting(std::int32_t layer, std::int32_t horizon) {
    return waiting_[std::size_t(layer) * kHorizons + std::size_t(horizon - 1)];
  }

  // The slope; at first as if one forecast had come true to the letter.
  float trust(std::int32_t horizon) const {
    const float some = float(geometry_.top_k) * (1 - chance());
    const float slope = (product_[horizon - 1] + some) / (square_[horizon - 1] + some);
    return std::isfinite(slope) ? std::clamp(slope, 0.0f, 1.0f) : 0.0f;
  }

  void learn(const Glimpse& glimpse, std::span<const Row> rows) override {
    for (std::int32_t f = 1; f <= kHorizons; ++f) {
      Waiting& told = waiting(glimpse.layer, f);
      if (!told.open) continue;
      told.open = false;
      if (rows.back().empty()) continue;  // the router said nothing that is known
      double product = 0, square = 0;
      for (float p : told.p) {
        product -= double(p - chance()) * chance();
        square += double(p - chance()) * (p - chance());
      }
      for (std::int32_t i : rows.back()) product += told.p[std::size_t(i)] - chance();
      product_[f - 1] = kKeep * product_[f - 1] + float(product);
      square_[f - 1] = kKeep * square_[f - 1] + float(square);
    }
    const std::size_t H = std::size_t(hidden_width_);
    readable_ = glimpse.hidden && std::all_of(glimpse.hidden, glimpse.hidden + H,
                                              [](float v) { return std::isfinite(v); });
    if (readable_) std::copy_n(glimpse.hidden, H, x_.begin());
  }

  bool look_ahead(std::int32_t layer, std::int32_t horizon, std::span<float> p) override {
    if (!readable_) return false;
    const std::size_t j = std::size_t(layer + horizon), H = std::size_t(hidden_width_);
    const float* x = x_.data();
    if (!norm_.empty()) {
      const float *from = norm_.data() + std::size_t(layer) * H, *to = norm_.data() + j * H;
      for (std::size_t h = 0; h < H; ++h) {
        moved_[h] = std::fabs(from[h]) < kSmallestNorm ? 0 : x_[h] * to[h] / from[h];
      }
      x = moved_.data();
    }
    const PredictorKernels& kernels = predictor_kernels();
    if (tiles_f16_.empty()) {
      kernels.dot_tiles_f32(tiles_.data() + j * lanes_ * columns_, lanes_, columns_, x,
                            logits_.data());
    } else {
      kernels.dot_tiles_f16(tiles_f16_.data() + j * lanes_ * columns_, lanes_, columns_, x,
                            logits_.data());
    }
    if (!bias_.empty()) {
      for (std::size_t i = 0; i < experts(); ++i) logits_[i] += bias_[j * experts() + i];
    }
    if (!spread(p)) return false;
    Waiting& told = waiting(layer + horizon, horizon);
    told.open = true;
    told.p.assign(p.begin(), p.end());
    const float share = trust(horizon);
    for (float& one : p) one = std::clamp(share * one + (1 - share) * chance(), 0.0f, 1.0f);
    return true;
  }

  // p = sigmoid(logits - threshold) with the sum top-k; false when logits are no numbers. With the
  // exponentials taken once, p = e / (e + exp(threshold)).
  bool spread(std::span<float> p) {
    const auto end = logits_.begin() + std::ptrdiff_t(p.size());
    if (!std::all_of(logits_.begin(), end, [](float v) { return std::isfinite(v); })) return false;
    const auto [least, most] = std::minmax_element(logits_.begin(), end);
    // Chances of all are below, and above, top-k / experts at these two.
    float low = *least - *most - 20, high = 20;
    const float top = *most;
    for (std::size_t i = 0; i < p.size(); ++i) logits_[i] = std::exp(logits_[i] - top);
    for (int step = 0; step < 24; ++step) {
      const float middle = low + (high - low) / 2;
      const float threshold = std::max(std::exp(middle), std::numeric_limits<float>::min());
      float sum = 0;
      for (std::size_t i = 0; i < p.size(); ++i) {
        p[i] = logits_[i] / (logits_[i] + threshold);
        sum += p[i];
      }
      (sum > float(geometry_.top_k) ? low : high) = middle;
    }
    return true;
  }

  const std::int32_t hidden_width_;
  const std::size_t columns_, lanes_;
  std::vector<float> tiles_;  // [L] tiles; one of the two is empty
  std::vector<std::uint16_t> tiles_f16_;
  const std::vector<float> bias_, norm_;  // [L, E], [L, H], or empty
  bool readable_ = false;                 // x_ is of the layer observed last
  std::vector<float> x_, moved_, logits_;
  std::vector<Waiting> waiting_;  // [L, horizons]
  float product_[kHorizons] = {}, square_[kHorizons] = {};
};

}  // namespace

std::unique_ptr<Predictor> make_next_gate(const Geometry& geometry, const PredictorInputs& inputs) {
  return std::make_unique<NextGate>(geometry, inputs);
}

}  // namespace prophet
