// How often each expert was chosen lately: a decayed share of the turns of its layer.
#pragma once

#include <vector>

namespace prophet {

class Popularity {
 public:
  // Shares start at `chance`; a turn's weight halves in about 70 turns.
  Popularity(std::size_t experts_in_all, float chance) : chance_(chance), shares_(experts_in_all) {
    reset();
  }
  void reset() { shares_.assign(shares_.size(), chance_); }

  // One turn of the layer whose experts begin at `first`.
  template <class Row>
  void turn(std::size_t first, std::size_t experts, const Row& chosen) {
    for (std::size_t i = 0; i < experts; ++i) shares_[first + i] *= kKeep;
    for (auto i : chosen) shares_[first + std::size_t(i)] += 1 - kKeep;
  }
  const float* shares(std::size_t first) const { return shares_.data() + first; }

 private:
  static constexpr float kKeep = 0.99f;
  float chance_;
  std::vector<float> shares_;
};

}  // namespace prophet
