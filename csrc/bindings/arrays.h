// Arrays of a predictor's file, as Python hands them over.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <vector>

namespace prophet {

// The elements of the named array as float32; nothing where there is no such array.
inline std::vector<float> floats_of(const pybind11::dict& tensors, const char* name) {
  using Floats = pybind11::array_t<float, pybind11::array::c_style | pybind11::array::forcecast>;
  if (!tensors.contains(name)) return {};
  const auto array = tensors[name].cast<Floats>();
  return {array.data(), array.data() + array.size()};
}

}  // namespace prophet
