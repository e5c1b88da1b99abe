// "activation-matrix": what MoE-Infinity forecasts (arXiv 2401.14361).
//
// An activation matrix counts, for a request, how often each expert of each layer was used; the
// matrices of up to 120 past requests are kept, rows divided by their sums. While a token runs, its
// own counts of the layers so far are compared with the same rows of every kept matrix, by cosine;
// of the nearest, a later layer's row foretells that layer:
//
//     p = top_k * share * (1 - layers ahead / layers)
//
// A new matrix takes the place of the most similar one once there are 120. Routers do not say where
// a request ends: a pass of several tokens, a prompt, begins one, and so does every 64th token.
// Until the first is over, its own counts foretell.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "predict/online_predictor.h"
#include "predict/predictor_registry.h"

namespace prophet {
namespace {

constexpr std::size_t kMatrices = 120;
constexpr std::int32_t kTokens = 64;  // of a request, at most

class ActivationMatrixSearch final : public OnlinePredictor {
 public:
  explicit ActivationMatrixSearch(const Geometry& geometry)
      : OnlinePredictor(geometry, geometry.layers),
        request_(std::size_t(geometry.total())),
        likeness_(kMatrices) {
    forget();
  }
  std::string name() const override { return "activation-matrix"; }

 private:
  struct Matrix {
    std::vector<float> share;   // [L, E]
    std::vector<double> norms;  // [L] sum of squares of the rows up to this one
  };

  void forget() override {
    kept_.clear();
    std::fill(request_.begin(), request_.end(), 0.0f);
    tokens_ = 0;
    seen_ = geometry_.layers;
    nearest_ = nullptr;
  }

  void learn(const Glimpse& glimpse, std::span<const Row> rows) override {
    if (glimpse.layer <= seen_) {  // a pass begins
      if (tokens_ > 0 && (rows.size() > 1 || tokens_ >= kTokens)) close();
      tokens_ += std::int32_t(rows.size());
      std::fill(likeness_.begin(), likeness_.end(), 0.0);
    }
    seen_ = glimpse.layer;
    const std::size_t from = at(glimpse.layer);
    nearest_ = nullptr;
    double best = -1;
    for (const Row& row : rows) {
      for (std::int32_t i : row) request_[from + std::size_t(i)] += 1;
    }
    for (std::size_t m = 0; m < kept_.size(); ++m) {
      const Matrix& matrix = kept_[m];
      for (const Row& row : rows) {
        for (std::int32_t i : row) likeness_[m] += double(matrix.share[from + std::size_t(i)]);
      }
      // The token's own norm is the same for all.
      const double norm = matrix.norms[std::size_t(glimpse.layer)];
      const double cosine = norm > 0 ? likeness_[m] / std::sqrt(norm) : 0;
      if (cosine <= best) continue;
      best = cosine;
      nearest_ = &matrix;
    }
  }

  bool look_ahead(std::int32_t layer, std::int32_t horizon, std::span<float> p) override {
    const std::size_t from = at(layer + horizon);
    const float near = 1 - float(horizon) / float(geometry_.layers);
    const float* row = (nearest_ ? nearest_->share : request_).data() + from;
    const float sum = nearest_ ? 1 : std::accumulate(row, row + experts(), 0.0f);
    if (sum <= 0) return false;
    for (std::size_t i = 0; i < p.size(); ++i) {
      p[i] = std::min(float(geometry_.top_k) * row[i] / sum, 1.0f) * near;
    }
    return true;
  }

  // The request is over: its matrix is kept.
  void close() {
    Matrix matrix{request_, std::vector<double>(std::size_t(geometry_.layers))};
    double squares = 0;
    for (std::int32_t layer = 0; layer < geometry_.layers; ++layer) {
      const std::span<float> row{matrix.share.data() + at(layer), experts()};
      double sum = 0;
      for (float count : row) sum += double(count);
      for (float& share : row) {
        if (sum > 0) share = float(double(share) / sum);
        squares += double(share) * double(share);
      }
      matrix.norms[std::size_t(layer)] = squares;
    }
    if (kept_.size() < kMatrices) {
      kept_.push_back(std::move(matrix));
    } else {
      *most_similar(matrix) = std::move(matrix);
    }
    std::fill(request_.begin(), request_.end(), 0.0f);
    tokens_ = 0;
  }

  std::vector<Matrix>::iterator most_similar(const Matrix& matrix) {
    const auto cosine = [&](const Matrix& other) {
      double product = 0;
      for (std::size_t i = 0; i < matrix.share.size(); ++i) {
        product += double(matrix.share[i]) * double(other.share[i]);
      }
      return other.norms.back() > 0 ? product / std::sqrt(other.norms.back()) : 0;
    };
    return std::max_element(kept_.begin(), kept_.end(), [&](const Matrix& a, const Matrix& b) {
      return cosine(a) < cosine(b);
    });
  }

  std::vector<Matrix> kept_;
  std::vector<float> request_;  // [L, E] counts of the running one
  std::int32_t tokens_ = 0;     // of it
  std::int32_t seen_ = 0;
  std::vector<double> likeness_;  // of each kept one to the running token: the product so far
  const Matrix* nearest_ = nullptr;
};

}  // namespace

std::unique_ptr<Predictor> make_activation_matrix_search(const Geometry& geometry,
                                                         const PredictorInputs&) {
  return std::make_unique<ActivationMatrixSearch>(geometry);
}

}  // namespace prophet
