// "markov": P(expert of a later layer | expert of this one), counted as tokens pass.
//
// For every expert and horizon the kSuccessors most frequent experts of the later layer are kept
// with decayed counts; a newcomer takes the place of the rarest one (and starts from nothing, so
// that it is never overestimated). A forecast is the mean of the conditionals over the experts just
// chosen, each smoothed by the later layer's popularity. Memory: 3 * min(experts, 64) * 8 bytes per
// expert.
#include <algorithm>

#include "predict/online_predictor.h"
#include "predict/popularity.h"
#include "predict/predictor_registry.h"

namespace prophet {
namespace {

constexpr std::size_t kSuccessors = 64;
constexpr float kKeep = 0.995f;  // per turn in which the expert was chosen
constexpr float kPrior = 4;      // turns that popularity is worth

class Markov final : public OnlinePredictor {
 public:
  explicit Markov(const Geometry& geometry)
      : OnlinePredictor(geometry),
        width_(std::min(experts(), kSuccessors)),
        popularity_(std::size_t(geometry.total()), chance()) {
    forget();
  }
  std::string name() const override { return "markov"; }

 private:
  struct Successor {
    std::int32_t expert = -1;
    float count = 0;
  };

  void forget() override {
    popularity_.reset();
    const std::size_t tables = std::size_t(geometry_.total()) * kHorizons;
    turns_.assign(tables, 0);
    successors_.assign(tables * width_, {});
  }

  std::size_t table(std::int32_t layer, std::int32_t horizon, std::int32_t expert) const {
    return (at(layer) + std::size_t(expert)) * kHorizons + std::size_t(horizon - 1);
  }
  std::span<Successor> successors(std::size_t table) {
    return {successors_.data() + table * width_, width_};
  }

  void learn(const Glimpse& glimpse, std::span<const Row> rows) override {
    for (const Row& row : rows) popularity_.turn(at(glimpse.layer), experts(), row);
    for (std::int32_t f = 1; f <= kHorizons && f <= glimpse.layer; ++f) {
      const std::span<const Row> earlier = this->rows(glimpse.layer - f);
      if (earlier.size() != rows.size()) continue;  // another step's
      for (std::size_t r = 0; r < rows.size(); ++r) {
        for (std::int32_t i : earlier[r]) count(table(glimpse.layer - f, f, i), rows[r]);
      }
    }
  }

  void count(std::size_t table, const Row& chosen) {
    const std::span<Successor> known = successors(table);
    turns_[table] = kKeep * turns_[table] + 1;
    for (Successor& one : known) one.count *= kKeep;
    for (std::int32_t i : chosen) {
      auto place = std::find_if(known.begin(), known.end(),
                                [i](const Successor& one) { return one.expert == i; });
      if (place == known.end()) {
        place = std::min_element(
            known.begin(), known.end(),
            [](const Successor& a, const Successor& b) { return a.count < b.count; });
        *place = {i, 0};
      }
      place->count += 1;
    }
  }

  bool look_ahead(std::int32_t layer, std::int32_t horizon, std::span<float> p) override {
    const std::span<const Row> now = rows(layer);
    if (now.empty() || now.back().empty()) return false;
    const Row& chosen = now.back();
    float prior = 0;  // popularity's part, the same for every expert
    std::fill(p.begin(), p.end(), 0.0f);
    for (std::int32_t i : chosen) {
      const std::size_t t = table(layer, horizon, i);
      const float weight = 1 / ((turns_[t] + kPrior) * float(chosen.size()));
      prior += kPrior * weight;
      for (const Successor& one : successors(t)) {
        if (one.expert >= 0) p[std::size_t(one.expert)] += one.count * weight;
      }
    }
    const float* shares = popularity_.shares(at(layer + horizon));
    for (std::size_t i = 0; i < p.size(); ++i) p[i] = std::min(p[i] + prior * shares[i], 1.0f);
    return true;
  }

  const std::size_t width_;
  Popularity popularity_;
  std::vector<float> turns_;           // [L, E, horizons] decayed turns in which it was chosen
  std::vector<Successor> successors_;  // [L, E, horizons, width]
};

}  // namespace

std::unique_ptr<Predictor> make_markov(const Geometry& geometry, const PredictorInputs&) {
  return std::make_unique<Markov>(geometry);
}

}  // namespace prophet
