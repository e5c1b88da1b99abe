// The tensors of a file as Python read them.
#pragma once

#include <pybind11/numpy.h>

#include <cstring>
#include <string>
#include <vector>

#include "core/error.h"

namespace prophet {

// The named array's elements as T (same width), or nothing where the file has no such tensor.
template <typename T>
std::vector<T> take(const pybind11::dict& tensors, const char* name) {
  if (!tensors.contains(name)) return {};
  const auto array = pybind11::array::ensure(tensors[name], pybind11::array::c_style);
  if (!array || array.dtype().kind() != 'f' || array.itemsize() != sizeof(T)) {
    throw InvalidArgument(std::string("the predictor's tensor ") + name + " is not float" +
                          std::to_string(8 * sizeof(T)) + "; export the predictor again");
  }
  std::vector<T> out(std::size_t(array.size()));
  std::memcpy(out.data(), array.data(), out.size() * sizeof(T));
  return out;
}

}  // namespace prophet
