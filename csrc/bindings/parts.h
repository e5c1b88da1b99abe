// The parts of the Python module, one function per topic.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "cache/cache.h"
#include "core/types.h"
#include "device/cpu/cpu_backend.h"

namespace prophet {

void register_cuda(pybind11::module_& m);
void register_errors(pybind11::module_& m);
void register_engine(pybind11::module_& m);
void register_layer_mlp(pybind11::module_& m);
void register_machine(pybind11::module_& m);
void register_predictor(pybind11::module_& m);
void register_sim(pybind11::module_& m);
void register_systems(pybind11::module_& m);
void register_transformer(pybind11::module_& m);
void register_text_predictor(pybind11::module_& m);

// "f32", "f16", "bf16"; throws InvalidArgument naming what it got.
DType dtype_from_name(const std::string& name);
// "auto", "uring", "pread"; the same.
IoKind io_from_name(const std::string& name);
// "global", "per-layer"; the same.
PoolScope pool_from_name(const std::string& name);
// Throws InvalidArgument when a predictor was trained for another geometry than the model's.
void require_same(const Geometry& model, const Geometry& trained);

}  // namespace prophet
