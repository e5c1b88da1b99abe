// prophet_ext.Predictor: the learned forecaster, made of arrays that Python read from its file, and
// those that need no training, by name.
#include "bindings/predictor.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>

#include "bindings/parts.h"
#include "bindings/tensors.h"
#include "core/error.h"
#include "predict/joint_predictor.h"
#include "predict/narrow_predictor.h"
#include "predict/predictor_registry.h"

namespace py = pybind11;

namespace prophet {
namespace {

BankWeights weights_of(const py::dict& t) {
  using Half = std::uint16_t;
  BankWeights w;
  w.enter_bank = take<Half>(t, "enter.bank");
  w.enter_recent = take<Half>(t, "enter.recent");
  w.enter_hidden = take<Half>(t, "enter.hidden");
  w.enter_bias = take<float>(t, "enter.bias");
  w.norm_gain = take<float>(t, "norm.gain");
  w.norm_bias = take<float>(t, "norm.bias");
  w.mid_weight = take<Half>(t, "mid.weight");
  w.mid_bias = take<float>(t, "mid.bias");
  w.leave_weight = take<Half>(t, "leave.weight");
  w.leave_bias = take<float>(t, "leave.bias");
  w.leave_mix = take<float>(t, "leave.mix");
  w.own_weight = take<float>(t, "own.weight");
  w.own_bias = take<float>(t, "own.bias");
  w.next_scale = take<float>(t, "next.scale");
  w.gap_weight = take<float>(t, "gap.weight");
  w.ahead_weight = take<Half>(t, "ahead.weight");
  w.ahead_bias = take<float>(t, "ahead.bias");
  w.ahead_prior = take<float>(t, "ahead.prior");
  w.ahead_pair = take<Half>(t, "ahead.pair");
  w.ahead_scale = take<float>(t, "ahead.scale");
  return w;
}

using Ids = py::array_t<std::int32_t, py::array::c_style | py::array::forcecast>;
using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;

void observe(PyPredictor& self, std::int32_t layer, const Ids& experts,
             const std::optional<Floats>& weights, const std::optional<Floats>& hidden) {
  if (experts.ndim() != 2 || (weights && weights->size() != experts.size())) {
    throw InvalidArgument("experts and weights are [tokens, top_k]");
  }
  const std::int32_t width = self.own().hidden_width();
  if (hidden && hidden->size() != width) {
    throw InvalidArgument("hidden is [" + std::to_string(width) + "]");
  }
  self.own().observe({layer, std::int32_t(experts.shape(0)), std::int32_t(experts.shape(1)),
                      experts.data(), weights ? weights->data() : nullptr,
                      hidden ? hidden->data() : nullptr});
}

// Whether there is news.
bool approach(PyPredictor& self, std::int32_t layer, std::int32_t tokens,
              const std::optional<Ids>& ids, const std::optional<Floats>& entering) {
  const std::int32_t width = self.own().entering_width();
  if ((ids && ids->size() != tokens) || (entering && entering->size() != width)) {
    throw InvalidArgument("ids are [tokens], and entering is [" + std::to_string(width) + "]");
  }
  return self.own().approach(
      {layer, tokens, ids ? ids->data() : nullptr, entering ? entering->data() : nullptr});
}

// None when it has no opinion.
py::object next_use(PyPredictor& self, std::int32_t layer) {
  py::array_t<float> gaps(self.geometry().experts_per_layer);
  const bool told = self.own().next_use(layer, {gaps.mutable_data(), std::size_t(gaps.size())});
  return told ? py::object(gaps) : py::none();
}

// [horizons, experts] for the layers after `layer`, zero where nothing was handed over.
py::array_t<float> forecast(PyPredictor& self, std::int32_t layer) {
  std::vector<Forecast> out;
  self.own().forecast(layer, out);
  const py::ssize_t experts = self.geometry().experts_per_layer;
  py::ssize_t horizons = 0;
  for (const Forecast& one : out) horizons = std::max<py::ssize_t>(horizons, one.horizon);
  py::array_t<float> p({horizons, experts});
  float* to = p.mutable_data();
  std::fill_n(to, p.size(), 0.0f);
  for (const Forecast& one : out) {
    to[(one.horizon - 1) * experts + one.key.expert] = one.p;
  }
  return p;
}

// The same of a trained one, which can speak of every expert.
py::array_t<float> bank_forecast(PyBank& self, std::int32_t layer) {
  const py::ssize_t experts = self.geometry().experts_per_layer;
  const py::ssize_t horizons = std::max(self.bank().horizons(layer), 0);
  py::array_t<float> p({horizons, experts});
  for (py::ssize_t f = 0; f < horizons; ++f) {
    self.bank().probabilities(layer, std::int32_t(f + 1),
                              {p.mutable_data() + f * experts, std::size_t(experts)});
  }
  return p;
}

// The elements of an optional array of this shape.
std::vector<float> take_floats(const char* name, const std::optional<Floats>& array,
                               const std::vector<py::ssize_t>& shape) {
  if (!array) return {};
  if (std::vector<py::ssize_t>(array->shape(), array->shape() + array->ndim()) != shape) {
    std::string words;
    for (py::ssize_t size : shape) words += (words.empty() ? "" : ", ") + std::to_string(size);
    throw InvalidArgument(std::string(name) + " is [" + words + "]");
  }
  return {array->data(), array->data() + array->size()};
}

std::shared_ptr<PyPredictor> make_by_name(const std::string& name, std::int32_t layers,
                                          std::int32_t experts_per_layer, std::int32_t top_k,
                                          const std::optional<py::array>& router,
                                          const std::optional<Floats>& router_bias,
                                          const std::optional<Floats>& norm,
                                          std::int32_t horizons) {
  PredictorInputs inputs;
  if (router) {
    if (router->ndim() != 3 || router->shape(0) != layers ||
        router->shape(1) != experts_per_layer) {
      throw InvalidArgument("router is [" + std::to_string(layers) + ", " +
                            std::to_string(experts_per_layer) + ", hidden]");
    }
    inputs.hidden = std::int32_t(router->shape(2));
    py::dict tensors;
    tensors["router"] = *router;
    if (router->itemsize() == 2) {
      inputs.router_f16 = take<std::uint16_t>(tensors, "router");
    } else {
      inputs.router = take<float>(tensors, "router");
    }
  }
  inputs.router_bias = take_floats("router_bias", router_bias, {layers, experts_per_layer});
  inputs.norm = take_floats("norm", norm, {layers, inputs.hidden});
  inputs.horizons = horizons;
  const Geometry geometry{layers, experts_per_layer, top_k};
  const auto shared = std::make_shared<const PredictorInputs>(std::move(inputs));
  return std::make_shared<PyPredictor>(geometry,
                                       [=] { return make_predictor(name, geometry, *shared); });
}

}  // namespace

void register_predictor(py::module_& m) {
  py::class_<PyPredictor, std::shared_ptr<PyPredictor>>(m, "Predictor")
      .def_property_readonly("name", &PyPredictor::name)
      .def_property_readonly("layers",
                             [](const PyPredictor& self) { return self.geometry().layers; })
      .def_property_readonly(
          "experts_per_layer",
          [](const PyPredictor& self) { return self.geometry().experts_per_layer; })
      .def_property_readonly("top_k", [](const PyPredictor& self) { return self.geometry().top_k; })
      .def_property_readonly("hidden_width",
                             [](PyPredictor& self) { return self.own().hidden_width(); })
      .def(
          "narrowed",
          [](const std::shared_ptr<PyPredictor>& self, std::int32_t most) {
            return std::make_shared<PyPredictor>(self->geometry(), [self, most] {
              return std::make_unique<NarrowPredictor>(self->make(), most);
            });
          },
          py::arg("most"))
      .def(
          "joined",
          [](const std::shared_ptr<PyPredictor>& self, const std::shared_ptr<PyPredictor>& other) {
            require_same(self->geometry(), other->geometry());
            return std::make_shared<PyPredictor>(self->geometry(), [self, other] {
              return std::make_unique<JointPredictor>(self->geometry(), self->make(),
                                                      other->make());
            });
          },
          py::arg("other"))
      .def("reset", [](PyPredictor& self) { self.own().reset(); })
      .def("observe", &observe, py::arg("layer"), py::arg("experts"),
           py::arg("weights") = std::nullopt, py::arg("hidden") = std::nullopt)
      .def_property_readonly("reads_tokens",
                             [](PyPredictor& self) { return self.own().reads_tokens(); })
      .def_property_readonly("entering_width",
                             [](PyPredictor& self) { return self.own().entering_width(); })
      .def("approach", &approach, py::arg("layer"), py::arg("tokens"),
           py::arg("ids") = std::nullopt, py::arg("entering") = std::nullopt)
      .def("next_use", &next_use, py::arg("layer"))
      .def("forecast", &forecast, py::arg("layer"));
  m.def("make_predictor", &make_by_name, py::arg("name"), py::kw_only(), py::arg("layers"),
        py::arg("experts_per_layer"), py::arg("top_k"), py::arg("router") = std::nullopt,
        py::arg("router_bias") = std::nullopt, py::arg("norm") = std::nullopt,
        py::arg("horizons") = 3);
  m.def("predictor_names", &predictor_names);

  py::class_<PyBank, PyPredictor, std::shared_ptr<PyBank>>(m, "BankPredictor")
      .def(py::init([](std::int32_t layers, std::int32_t experts, std::int32_t top_k,
                       std::int32_t rank, std::vector<float> decays, std::vector<std::int32_t> bank,
                       const std::vector<std::pair<std::int32_t, bool>>& recent, std::int32_t heads,
                       std::int32_t latents, std::int32_t limits, std::int32_t limit,
                       std::int32_t ahead, std::int32_t pairs, std::int32_t hidden,
                       const py::dict& tensors) {
             BankConfig c;
             c.geometry = {layers, experts, top_k};
             c.rank = rank;
             c.decays = std::move(decays);
             c.bank = std::move(bank);
             for (const auto& [lag, gate] : recent) c.recent.push_back({lag, gate});
             c.heads = heads;
             c.latents = latents;
             c.limits = limits;
             c.limit = limit;
             c.ahead = ahead;
             c.pairs = pairs;
             c.hidden = hidden;
             return std::make_shared<PyBank>(
                 std::make_shared<const BankNetwork>(std::move(c), weights_of(tensors)));
           }),
           py::kw_only(), py::arg("layers"), py::arg("experts"), py::arg("top_k"), py::arg("rank"),
           py::arg("decays"), py::arg("bank"), py::arg("recent"), py::arg("heads"),
           py::arg("latents"), py::arg("limits"), py::arg("limit"), py::arg("ahead"),
           py::arg("pairs"), py::arg("hidden"), py::arg("tensors"))
      .def("forecast", &bank_forecast, py::arg("layer"));
}

}  // namespace prophet
