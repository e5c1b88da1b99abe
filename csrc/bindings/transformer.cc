// prophet_ext.TransformerPredictor: the paper's transformer, made of arrays that Python read from
// its file.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "bindings/parts.h"
#include "bindings/predictor.h"
#include "bindings/tensors.h"
#include "predict/stream_predictor.h"
#include "predict/transformer_predictor.h"

namespace py = pybind11;

namespace prophet {
namespace {

// All that are made of it share its weights, and keep a history for each stream.
class PyTransformer final : public PyPredictor {
 public:
  explicit PyTransformer(const std::shared_ptr<const TransformerNetwork>& network)
      : PyPredictor(
            network->config().geometry,
            [network] {
              return std::make_unique<StreamPredictor>(
                  [network] { return std::make_unique<TransformerPredictor>(network); },
                  network->config().geometry.experts_per_layer);
            },
            std::make_unique<TransformerPredictor>(network)) {}
  TransformerPredictor& transformer() { return static_cast<TransformerPredictor&>(own()); }
};

TransformerWeights weights_of(const py::dict& t) {
  TransformerWeights w;
  w.expert = take<std::uint16_t>(t, "expert");
  w.layer = take<float>(t, "layer");
  w.pad = take<float>(t, "pad");
  w.place = take<float>(t, "place");
  w.project_weight = take<std::uint16_t>(t, "project.weight");
  w.project_bias = take<float>(t, "project.bias");
  w.enter_gain = take<float>(t, "enter.gain");
  w.enter_bias = take<float>(t, "enter.bias");
  w.read_weight = take<std::uint16_t>(t, "read.weight");
  w.read_bias = take<float>(t, "read.bias");
  w.merge_weight = take<std::uint16_t>(t, "merge.weight");
  w.merge_bias = take<float>(t, "merge.bias");
  w.middle_gain = take<float>(t, "middle.gain");
  w.middle_bias = take<float>(t, "middle.bias");
  w.up_weight = take<std::uint16_t>(t, "up.weight");
  w.up_bias = take<float>(t, "up.bias");
  w.down_weight = take<std::uint16_t>(t, "down.weight");
  w.down_bias = take<float>(t, "down.bias");
  w.norm_gain = take<float>(t, "norm.gain");
  w.norm_bias = take<float>(t, "norm.bias");
  w.use_weight = take<std::uint16_t>(t, "use.weight");
  w.own_weight = take<float>(t, "own.weight");
  w.own_bias = take<float>(t, "own.bias");
  w.next_scale = take<float>(t, "next.scale");
  w.gap_weight = take<float>(t, "gap.weight");
  w.horizon_weight = take<std::uint16_t>(t, "horizon.weight");
  w.ahead_weight = take<std::uint16_t>(t, "ahead.weight");
  w.ahead_bias = take<float>(t, "ahead.bias");
  w.ahead_scale = take<float>(t, "ahead.scale");
  return w;
}

// [horizons, experts] for the layers after `layer`, of every expert.
py::array_t<float> forecast(PyTransformer& self, std::int32_t layer) {
  const py::ssize_t experts = self.geometry().experts_per_layer;
  const py::ssize_t horizons = std::max(self.transformer().horizons(layer), 0);
  py::array_t<float> p({horizons, experts});
  for (py::ssize_t f = 0; f < horizons; ++f) {
    self.transformer().probabilities(layer, std::int32_t(f + 1),
                                     {p.mutable_data() + f * experts, std::size_t(experts)});
  }
  return p;
}

std::shared_ptr<PyTransformer> make(std::int32_t layers, std::int32_t experts, std::int32_t top_k,
                                    std::int32_t width, std::int32_t depth,
                                    std::int32_t attention_heads, std::int32_t context,
                                    std::vector<float> decays, std::int32_t heads,
                                    std::int32_t limits, std::int32_t limit, std::int32_t ahead,
                                    bool history, std::int32_t hidden, const py::dict& tensors) {
  TransformerConfig c;
  c.geometry = {layers, experts, top_k};
  c.width = width;
  c.depth = depth;
  c.attention_heads = attention_heads;
  c.context = context;
  c.decays = std::move(decays);
  c.heads = heads;
  c.limits = limits;
  c.limit = limit;
  c.ahead = ahead;
  c.history = history;
  c.hidden = hidden;
  return std::make_shared<PyTransformer>(
      std::make_shared<const TransformerNetwork>(std::move(c), weights_of(tensors)));
}

}  // namespace

void register_transformer(py::module_& m) {
  py::class_<PyTransformer, PyPredictor, std::shared_ptr<PyTransformer>>(m, "TransformerPredictor")
      .def(py::init(&make), py::kw_only(), py::arg("layers"), py::arg("experts"), py::arg("top_k"),
           py::arg("width"), py::arg("depth"), py::arg("attention_heads"), py::arg("context"),
           py::arg("decays"), py::arg("heads"), py::arg("limits"), py::arg("limit"),
           py::arg("ahead"), py::arg("history"), py::arg("hidden"), py::arg("tensors"))
      .def("forecast", &forecast, py::arg("layer"));
}

}  // namespace prophet
