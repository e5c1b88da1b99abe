// prophet_ext.BankPredictor: the learned forecaster, made of arrays that Python read from its file.
#include "bindings/predictor.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "bindings/parts.h"
#include "core/error.h"

namespace py = pybind11;

namespace prophet {
namespace {

// The named array's elements as T (same width), or nothing where the file has no such tensor.
template <typename T>
std::vector<T> take(const py::dict& tensors, const char* name) {
  if (!tensors.contains(name)) return {};
  const py::array array = py::array::ensure(tensors[name], py::array::c_style);
  if (!array || array.dtype().kind() != 'f' || array.itemsize() != sizeof(T)) {
    throw InvalidArgument(std::string("the predictor's tensor ") + name + " is not float" +
                          std::to_string(8 * sizeof(T)) + "; export the predictor again");
  }
  std::vector<T> out(std::size_t(array.size()));
  std::memcpy(out.data(), array.data(), out.size() * sizeof(T));
  return out;
}

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
  if (hidden && hidden->size() != self.config().hidden) {
    throw InvalidArgument("hidden is [" + std::to_string(self.config().hidden) + "]");
  }
  self.own().observe({layer, std::int32_t(experts.shape(0)), std::int32_t(experts.shape(1)),
                      experts.data(), weights ? weights->data() : nullptr,
                      hidden ? hidden->data() : nullptr});
}

py::array_t<float> next_use(PyPredictor& self, std::int32_t layer) {
  py::array_t<float> gaps(self.config().geometry.experts_per_layer);
  self.own().next_use(layer, {gaps.mutable_data(), std::size_t(gaps.size())});
  return gaps;
}

// [horizons, experts] for the layers after `layer`.
py::array_t<float> forecast(PyPredictor& self, std::int32_t layer) {
  const py::ssize_t experts = self.config().geometry.experts_per_layer;
  const py::ssize_t horizons = std::max(self.own().horizons(layer), 0);
  py::array_t<float> p({horizons, experts});
  for (py::ssize_t f = 0; f < horizons; ++f) {
    self.own().probabilities(layer, std::int32_t(f + 1),
                             {p.mutable_data() + f * experts, std::size_t(experts)});
  }
  return p;
}

}  // namespace

void register_predictor(py::module_& m) {
  py::class_<PyPredictor, std::shared_ptr<PyPredictor>>(m, "BankPredictor")
      .def(
          py::init([](std::int32_t layers, std::int32_t experts, std::int32_t top_k,
                      std::int32_t rank, std::vector<float> decays, std::vector<std::int32_t> bank,
                      const std::vector<std::pair<std::int32_t, bool>>& recent, std::int32_t heads,
                      std::int32_t latents, std::int32_t limits, std::int32_t limit,
                      std::int32_t ahead, bool pair, std::int32_t hidden, const py::dict& tensors) {
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
            c.pair = pair;
            c.hidden = hidden;
            return std::make_shared<PyPredictor>(std::move(c), weights_of(tensors));
          }),
          py::kw_only(), py::arg("layers"), py::arg("experts"), py::arg("top_k"), py::arg("rank"),
          py::arg("decays"), py::arg("bank"), py::arg("recent"), py::arg("heads"),
          py::arg("latents"), py::arg("limits"), py::arg("limit"), py::arg("ahead"),
          py::arg("pair"), py::arg("hidden"), py::arg("tensors"))
      .def("reset", [](PyPredictor& self) { self.own().reset(); })
      .def("observe", &observe, py::arg("layer"), py::arg("experts"),
           py::arg("weights") = std::nullopt, py::arg("hidden") = std::nullopt)
      .def("next_use", &next_use, py::arg("layer"))
      .def("forecast", &forecast, py::arg("layer"));
}

}  // namespace prophet
