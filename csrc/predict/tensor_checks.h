// What every network asks of the tensors of its file, and where it keeps them: sentences that name
// the tensor, and one run of memory for all float16 weights.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"

namespace prophet {

inline bool is_finite(float v) { return std::isfinite(v); }
inline bool is_finite(std::uint16_t half) { return (half & 0x7c00) != 0x7c00; }

// Throws InvalidArgument unless the tensor has that many numbers, all of them finite.
template <typename T>
void require_tensor(const char* name, const std::vector<T>& tensor, std::size_t size) {
  if (tensor.size() != size) {
    throw InvalidArgument(std::string("the predictor's tensor ") + name + " holds " +
                          std::to_string(tensor.size()) + " numbers, its configuration asks for " +
                          std::to_string(size) + "; export the predictor again");
  }
  if (!std::all_of(tensor.begin(), tensor.end(), [](T v) { return is_finite(v); })) {
    throw InvalidArgument(std::string("the predictor's tensor ") + name +
                          " holds numbers that are not finite: it was not trained to the end");
  }
}

// [rows, n] as [rows, padded].
template <typename T>
void copy_rows(const T* from, std::size_t rows, std::size_t n, std::size_t padded, T* to) {
  for (std::size_t r = 0; r < rows; ++r) std::copy_n(from + r * n, n, to + r * padded);
}

inline std::vector<float> padded_rows(const std::vector<float>& from, std::size_t n,
                                      std::size_t padded) {
  std::vector<float> out(from.size() / n * padded, 0.0f);
  copy_rows(from.data(), from.size() / n, n, padded, out.data());
  return out;
}

struct FreeHalves {
  void operator()(std::uint16_t* memory) const;
};
using HalfMemory = std::unique_ptr<std::uint16_t, FreeHalves>;

// Zeros, at a boundary of 64 bytes, on huge pages where there are many and the system grants them.
HalfMemory make_halves(std::size_t count);

}  // namespace prophet
