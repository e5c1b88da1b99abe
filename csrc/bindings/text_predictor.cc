// prophet_ext.make_text_predictor: a network on the text, made of arrays that Python read from its
// file.
#include "predict/text_predictor.h"

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
                                  std::int32_t vocabulary, std::int32_t embedding,
                                  std::int32_t width, const py::dict& tensors) {
  auto weights = std::make_shared<TextWeights>();
  weights->geometry = {layers, experts_per_layer, top_k};
  weights->name = name;
  weights->vocabulary = vocabulary;
  weights->embedding = embedding;
  weights->width = width;
  weights->embed = floats_of(tensors, "embed.weight");
  weights->input = floats_of(tensors, "input.weight");
  weights->input_bias = floats_of(tensors, "input.bias");
  weights->recur = floats_of(tensors, "recur.weight");
  weights->recur_bias = floats_of(tensors, "recur.bias");
  weights->leave = floats_of(tensors, "leave.weight");
  weights->leave_bias = floats_of(tensors, "leave.bias");
  const std::shared_ptr<const TextWeights> shared = std::move(weights);
  return std::make_shared<PyPredictor>(
      shared->geometry,
      [shared] {
        return std::make_unique<StreamPredictor>([shared] { return make_text_predictor(shared); },
                                                 shared->geometry.experts_per_layer);
      },
      make_text_predictor(shared));
}

}  // namespace

void register_text_predictor(py::module_& m) {
  m.def("make_text_predictor", &make, py::arg("name"), py::kw_only(), py::arg("layers"),
        py::arg("experts_per_layer"), py::arg("top_k"), py::arg("vocabulary"), py::arg("embedding"),
        py::arg("width"), py::arg("tensors"));
}

}  // namespace prophet
