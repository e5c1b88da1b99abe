// prophet_ext.make_layer_mlp: the networks of rivals, made of arrays that Python read from their
// file.
#include "predict/layer_mlp.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "bindings/parts.h"
#include "bindings/predictor.h"

namespace py = pybind11;

namespace prophet {
namespace {

std::shared_ptr<PyPredictor> make(const std::string& name, std::int32_t layers,
                                  std::int32_t experts_per_layer, std::int32_t top_k,
                                  std::int32_t stride, std::int32_t context, std::int32_t hidden,
                                  std::int32_t width, const py::dict& tensors) {
  auto weights = std::make_shared<LayerMlpWeights>();
  weights->geometry = {layers, experts_per_layer, top_k};
  weights->name = name;
  weights->stride = stride;
  weights->context = context;
  weights->hidden = hidden;
  weights->width = width;
  weights->affinity = floats_of(tensors, "affinity");
  weights->enter = floats_of(tensors, "enter.weight");
  weights->enter_bias = floats_of(tensors, "enter.bias");
  weights->leave = floats_of(tensors, "leave.weight");
  weights->leave_bias = floats_of(tensors, "leave.bias");
  const std::shared_ptr<const LayerMlpWeights> shared = std::move(weights);
  return std::make_shared<PyPredictor>(shared->geometry,
                                       [shared] { return make_layer_mlp(shared); });
}

}  // namespace

void register_layer_mlp(py::module_& m) {
  m.def("make_layer_mlp", &make, py::arg("name"), py::kw_only(), py::arg("layers"),
        py::arg("experts_per_layer"), py::arg("top_k"), py::arg("stride"), py::arg("context"),
        py::arg("hidden"), py::arg("width"), py::arg("tensors"));
}

}  // namespace prophet
