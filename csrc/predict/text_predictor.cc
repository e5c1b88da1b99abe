#include "predict/text_predictor.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <utility>

#include "core/error.h"
#include "predict/approach_predictor.h"

namespace prophet {
namespace {

float sigmoid(float v) { return 1 / (1 + std::exp(-v)); }

// out += x times the rows of `matrix`, [x.size(), out.size()].
void add_product(std::span<const float> x, const float* matrix, std::span<float> out) {
  const std::size_t n = out.size();
  for (std::size_t i = 0; i < x.size(); ++i) {
    const float* row = matrix + i * n;
    for (std::size_t j = 0; j < n; ++j) out[j] += x[i] * row[j];
  }
}

class TextPredictor final : public ApproachPredictor {
 public:
  explicit TextPredictor(std::shared_ptr<const TextWeights> weights)
      : ApproachPredictor(weights->geometry), weights_(std::move(weights)) {
    const TextWeights& w = *weights_;
    if (w.vocabulary < 1 || w.embedding < 1 || w.width < 1) {
      throw InvalidArgument(
          "a network on the text needs a vocabulary, an embedding and a width of at least 1; train "
          "the predictor again");
    }
    const auto V = std::size_t(w.vocabulary), D = std::size_t(w.embedding);
    const auto H = std::size_t(w.width);
    const auto all = std::size_t(w.geometry.layers) * experts();
    require("embed.weight", w.embed, (V + 1) * D);
    require("input.weight", w.input, D * 3 * H);
    require("input.bias", w.input_bias, 3 * H);
    require("recur.weight", w.recur, H * 3 * H);
    require("recur.bias", w.recur_bias, 3 * H);
    require("leave.weight", w.leave, (H + D) * all);
    require("leave.bias", w.leave_bias, all);
    h_.resize(H);
    from_input_.resize(3 * H);
    from_state_.resize(3 * H);
    one_.resize(all);
  }

  std::string name() const override { return weights_->name; }
  bool reads_tokens() const override { return true; }

 private:
  static void require(const char* name, const std::vector<float>& numbers, std::size_t size) {
    if (numbers.size() != size) {
      throw InvalidArgument(std::string("a network on the text needs ") + std::to_string(size) +
                            " numbers of " + name + " and got " + std::to_string(numbers.size()) +
                            "; train the predictor again");
    }
    if (!std::all_of(numbers.begin(), numbers.end(), [](float v) { return std::isfinite(v); })) {
      throw InvalidArgument(std::string("a network on the text got a number in ") + name +
                            " that is not finite; train the predictor again");
    }
  }

  void forget() override { std::fill(h_.begin(), h_.end(), 0.0f); }

  std::int32_t look(const Approach& approach, std::span<float> p) override {
    if (approach.layer != 0 || !approach.ids) return 0;
    const bool told = approach.tokens <= TextWeights::kMostRows;
    if (told) std::fill(p.begin(), p.end(), 1.0f);
    const std::int32_t first = std::max(0, approach.tokens - TextWeights::kMostRead);
    for (std::int32_t row = first; row < approach.tokens; ++row) {
      const std::span<const float> x = embedded(approach.ids[row]);
      read(x);
      if (told) miss(x, p);
    }
    if (!told) return 0;
    for (float& one : p) one = 1 - one;
    return geometry_.layers;
  }

  std::span<const float> embedded(std::int32_t token) const {
    const TextWeights& w = *weights_;
    const std::int32_t row = token >= 0 && token < w.vocabulary ? token : w.vocabulary;
    return {w.embed.data() + std::size_t(row) * std::size_t(w.embedding), std::size_t(w.embedding)};
  }

  void read(std::span<const float> x) {
    const TextWeights& w = *weights_;
    from_input_ = w.input_bias;
    from_state_ = w.recur_bias;
    add_product(x, w.input.data(), from_input_);
    add_product(h_, w.recur.data(), from_state_);
    const std::size_t H = h_.size();
    for (std::size_t i = 0; i < H; ++i) {
      const float r = sigmoid(from_input_[i] + from_state_[i]);
      const float z = sigmoid(from_input_[H + i] + from_state_[H + i]);
      const float n = std::tanh(from_input_[2 * H + i] + r * from_state_[2 * H + i]);
      h_[i] = (1 - z) * n + z * h_[i];
    }
  }

  // p *= P(this token does not ask).
  void miss(std::span<const float> x, std::span<float> p) {
    const TextWeights& w = *weights_;
    one_ = w.leave_bias;
    add_product(h_, w.leave.data(), one_);
    add_product(x, w.leave.data() + h_.size() * one_.size(), one_);
    for (std::size_t i = 0; i < p.size(); ++i) p[i] *= sigmoid(-one_[i]);
  }

  const std::shared_ptr<const TextWeights> weights_;
  std::vector<float> h_, from_input_, from_state_, one_;
};

}  // namespace

std::unique_ptr<Predictor> make_text_predictor(std::shared_ptr<const TextWeights> weights) {
  return std::make_unique<TextPredictor>(std::move(weights));
}

}  // namespace prophet
