// The feed-forward network in float64, and matrices to feed it: written from the formula, with none
// of the code under test.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/expert_ffn.h"

namespace prophet::testing {

inline double half_value(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 1023;
  double magnitude;
  if (exponent == 31) {
    magnitude = mantissa == 0 ? INFINITY : NAN;
  } else if (exponent == 0) {
    magnitude = std::ldexp(mantissa, -24);
  } else {
    magnitude = std::ldexp(1024 + mantissa, exponent - 25);
  }
  return bits & 0x8000 ? -magnitude : magnitude;
}

inline double bfloat_value(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

// [rows, columns] of one element type, at `offset` bytes past the start of its own allocation,
// which ends with the last element: AddressSanitizer sees a read of one byte more.
class Matrix {
 public:
  Matrix(DType type, std::size_t rows, std::size_t columns, std::size_t offset,
         std::mt19937& random)
      : type_(type), columns_(columns), offset_(offset) {
    bytes_.resize(offset + rows * columns * size_of(type));
    bytes_.shrink_to_fit();
    std::uniform_int_distribution<int> step(-64, 64);
    for (std::size_t i = 0; i < rows * columns; ++i) set(i, step(random) / 64.0f);
  }

  // `value` must be exact in every type: a few bits and a moderate exponent.
  void set(std::size_t i, float value) {
    if (type_ == DType::f32) return set_bits(i, std::bit_cast<std::uint32_t>(value));
    if (type_ == DType::bf16) return set_bits(i, std::bit_cast<std::uint32_t>(value) >> 16);
    std::uint32_t half = 0;
    if (std::isinf(value)) {
      half = 0x7c00;
    } else if (value != 0) {
      int exponent;
      const float fraction = std::frexp(std::fabs(value), &exponent);  // in [0.5, 1)
      half = (static_cast<std::uint32_t>(exponent + 14) << 10) |
             (static_cast<std::uint32_t>(fraction * 2048) & 1023);
    }
    set_bits(i, half | (std::signbit(value) ? 0x8000u : 0u));
  }

  void set_bits(std::size_t i, std::uint32_t bits) {
    std::byte* at = bytes_.data() + offset_ + i * size_of(type_);
    const auto low = static_cast<std::uint16_t>(bits);
    if (type_ == DType::f32) {
      std::memcpy(at, &bits, 4);
    } else {
      std::memcpy(at, &low, 2);
    }
  }

  double at(std::size_t r, std::size_t c) const {
    const std::byte* from = data() + (r * columns_ + c) * size_of(type_);
    if (type_ == DType::f32) {
      float value;
      std::memcpy(&value, from, 4);
      return value;
    }
    std::uint16_t bits;
    std::memcpy(&bits, from, 2);
    return type_ == DType::f16 ? half_value(bits) : bfloat_value(bits);
  }

  const std::byte* data() const { return bytes_.data() + offset_; }

 private:
  DType type_;
  std::size_t columns_;
  std::size_t offset_;
  std::vector<std::byte> bytes_;
};

struct Expert {
  Matrix gate, up, down;

  Expert(const FfnShape& shape, std::size_t offset, std::mt19937& random)
      : gate(shape.weights, shape.inter, shape.hidden, offset, random),
        up(shape.weights, shape.inter, shape.hidden, offset, random),
        down(shape.weights, shape.hidden, shape.inter, offset, random) {}

  FfnJob job(const FfnShape& shape, int tokens, const std::int32_t* rows,
             float* const* outputs) const {
    return {shape.has_gate ? gate.data() : nullptr, up.data(), down.data(), tokens, rows, outputs};
  }
};

inline double activation_value(Activation activation, double x) {
  switch (activation) {
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu_erf:
      return x / 2 * std::erfc(-x / std::sqrt(2.0));
    case Activation::gelu_tanh:
      return x / 2 * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
    case Activation::relu:
      return x > 0 ? x : 0;
    case Activation::relu2:
      return x > 0 ? x * x : 0;
  }
  return NAN;
}

// Values, and what they would be if nothing cancelled: the scale of an acceptable error.
struct Reference {
  std::vector<double> value;
  std::vector<double> scale;
};

inline Reference reference_ffn(const FfnShape& shape, const Expert& expert, const float* x) {
  const std::size_t hidden = shape.hidden, inter = shape.inter;
  std::vector<double> middle(inter), middle_scale(inter);
  for (std::size_t i = 0; i < inter; ++i) {
    double gate = 0, up = 0, gate_scale = 0, up_scale = 0;
    for (std::size_t c = 0; c < hidden; ++c) {
      gate += expert.gate.at(i, c) * x[c];
      up += expert.up.at(i, c) * x[c];
      gate_scale += std::fabs(expert.gate.at(i, c) * x[c]);
      up_scale += std::fabs(expert.up.at(i, c) * x[c]);
    }
    const double argument_scale = shape.has_gate ? gate_scale : up_scale;
    const bool squares = shape.activation == Activation::relu2;
    const double act_scale = squares ? argument_scale * argument_scale : argument_scale;
    middle[i] = activation_value(shape.activation, shape.has_gate ? gate : up);
    middle_scale[i] = act_scale;
    if (shape.has_gate) {
      middle[i] *= up;
      middle_scale[i] *= up_scale;
    }
  }
  Reference result{std::vector<double>(hidden), std::vector<double>(hidden)};
  for (std::size_t r = 0; r < hidden; ++r) {
    for (std::size_t i = 0; i < inter; ++i) {
      result.value[r] += expert.down.at(r, i) * middle[i];
      result.scale[r] += std::fabs(expert.down.at(r, i)) * middle_scale[i];
    }
  }
  return result;
}

// Runs something once per instruction set of this machine, and restores the set in use.
template <class Body>
void for_each_isa(Body body) {
  const std::string before{kernel_isa()};
  for (const std::string& isa : kernel_isas()) {
    set_kernel_isa(isa);
    body(isa);
  }
  set_kernel_isa(before);
}

inline std::vector<float> random_floats(std::size_t n, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<float> values(n);
  for (float& value : values) value = normal(random);
  return values;
}

}  // namespace prophet::testing
