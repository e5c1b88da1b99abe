#include "kernels/activation.h"

#include <cmath>
#include <iterator>
#include <numbers>
#include <string>

#include "core/error.h"

namespace prophet {
namespace {

struct Named {
  std::string_view name;
  Activation activation;
};

constexpr Named kNames[] = {
    {"silu", Activation::silu},           {"gelu_erf", Activation::gelu_erf},
    {"gelu_tanh", Activation::gelu_tanh}, {"relu", Activation::relu},
    {"relu2", Activation::relu2},
};

// x * sigmoid(y). For large -y the quotient is a signed zero, as the limit is.
float times_sigmoid(float x, float y) { return x / (1.0f + std::exp(-y)); }

float silu(float x) { return times_sigmoid(x, x); }

// erfc instead of 1 + erf keeps the relative error small for negative x.
float gelu_erf(float x) {
  constexpr float kInverseSqrt2 = 1.0f / std::numbers::sqrt2_v<float>;
  return 0.5f * x * std::erfc(-x * kInverseSqrt2);
}

// (1 + tanh(z)) / 2 = sigmoid(2 z), which does not cancel for negative z.
float gelu_tanh(float x) {
  constexpr float kTwiceSqrt2OverPi =
      2.0f * std::numbers::sqrt2_v<float> * std::numbers::inv_sqrtpi_v<float>;
  return times_sigmoid(x, kTwiceSqrt2OverPi * (x + 0.044715f * x * x * x));
}

// Written so that NaN passes.
float relu(float x) { return x < 0.0f ? 0.0f : x; }

float relu2(float x) { return relu(x) * relu(x); }

template <class Function>
void apply(Function act, const float* gate, float* up, std::size_t n) {
  if (gate == nullptr) {
    for (std::size_t i = 0; i < n; ++i) up[i] = act(up[i]);
  } else {
    for (std::size_t i = 0; i < n; ++i) up[i] = act(gate[i]) * up[i];
  }
}

}  // namespace

Activation activation_from_name(std::string_view name) {
  std::string known;
  for (const Named& entry : kNames) {
    if (name == entry.name) return entry.activation;
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  throw InvalidArgument("unknown activation '" + std::string(name) + "'; known are: " + known);
}

void activate(Activation activation, const float* gate, float* up, std::size_t n) {
  switch (activation) {
    case Activation::silu:
      apply(silu, gate, up, n);
      return;
    case Activation::gelu_erf:
      apply(gelu_erf, gate, up, n);
      return;
    case Activation::gelu_tanh:
      apply(gelu_tanh, gate, up, n);
      return;
    case Activation::relu:
      apply(relu, gate, up, n);
      return;
    case Activation::relu2:
      apply(relu2, gate, up, n);
      return;
  }
}

}  // namespace prophet
