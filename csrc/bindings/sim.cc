// prophet_ext.Replay and prophet_ext.NextUse: routing traces on a virtual clock, for Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <variant>

#include "bindings/counters.h"
#include "bindings/parts.h"
#include "bindings/policy.h"
#include "bindings/predictor.h"
#include "bindings/prefetch.h"
#include "core/error.h"
#include "sim/next_use.h"
#include "sim/replay.h"
#include "sim/stack_distance.h"

namespace py = pybind11;

namespace prophet {
namespace {

constexpr int kDense = py::array::c_style | py::array::forcecast;
using Routes = py::array_t<std::int32_t, kDense>;
using Gates = py::array_t<float, kDense>;
using Next = py::array_t<std::int64_t, kDense>;

template <typename T>
std::span<const T> span_of(const py::array_t<T, kDense>& array) {
  return {array.data(), static_cast<std::size_t>(array.size())};
}

// What Python handed in, kept alive while the GIL is released.
struct PyChunk {
  Routes routes;
  std::optional<Gates> gates;
  std::optional<Next> next;
  std::optional<Gates> hidden;
  std::optional<Next> streams = {};
  std::optional<Routes> ids = {};
  std::optional<Gates> entering = {};

  Replay::Chunk chunk() const {
    Replay::Chunk out;
    out.routes = span_of(routes);
    if (gates) out.gates = span_of(*gates);
    if (next) out.next = span_of(*next);
    if (hidden) out.hidden = span_of(*hidden);
    if (streams) out.streams = span_of(*streams);
    if (ids) out.ids = span_of(*ids);
    if (entering) out.entering = span_of(*entering);
    return out;
  }
};

py::dict summary(const Histogram& histogram) {
  py::dict out;
  out["mean"] = histogram.mean();
  out["min"] = histogram.least();
  out["p50"] = histogram.quantile(0.5);
  out["p90"] = histogram.quantile(0.9);
  out["p99"] = histogram.quantile(0.99);
  out["p999"] = histogram.quantile(0.999);
  out["max"] = histogram.most();
  return out;
}

py::dict to_dict(const Stays& stays) {
  py::dict out, back;
  out["left"] = stays.turns.count();
  out["turns"] = summary(stays.turns);
  out["ns"] = summary(stays.time);
  out["by_power"] = stays.by_power;
  for (std::size_t i = 0; i < stays.back.size(); ++i)
    back[py::int_(Stays::kSoon[i])] = stays.back[i];
  out["back_within"] = back;
  return out;
}

py::dict to_dict(const ReplayResult& result) {
  py::dict out;
  out["tokens"] = result.tokens;
  out["passes"] = result.passes;
  out["prefill_tokens"] = result.prefill_tokens;
  out["prefill_ns"] = result.prefill_ns;
  out["prefill_bytes"] = result.prefill_bytes;
  out["tpot_ns"] = summary(result.tpot);
  out["stall_ns"] = summary(result.stall);
  py::array_t<std::uint64_t> layers(
      {static_cast<py::ssize_t>(result.layers.size()), py::ssize_t{3}});
  std::uint64_t* to = layers.mutable_data();
  for (const LayerCounts& layer : result.layers) {
    *to++ = layer.resident;
    *to++ = layer.in_flight;
    *to++ = layer.miss;
  }
  out["layers"] = layers;
  out["counters"] = to_dict(result.counters);
  out["residence"] = to_dict(result.stays);
  return out;
}

using Counts = py::array_t<std::uint64_t>;

Counts to_array(const std::vector<std::uint64_t>& counts) {
  return Counts(static_cast<py::ssize_t>(counts.size()), counts.data());
}

Counts to_array(const std::vector<std::vector<std::uint64_t>>& rows) {
  Counts out({std::ssize(rows), std::ssize(rows.front())});
  std::uint64_t* to = out.mutable_data();
  for (const auto& row : rows) to = std::copy(row.begin(), row.end(), to);
  return out;
}

std::unique_ptr<Replay> make_replay(
    std::int32_t layers, std::int32_t experts_per_layer, std::int32_t top_k, std::int32_t slots,
    std::uint64_t expert_bytes, const std::variant<std::string, py::function>& policy,
    const std::string& pool, bool keep, double bytes_per_second, Nanos latency_ns,
    Nanos overhead_ns, std::uint64_t chunk_bytes, int prefetch_chunks, Nanos pass_ns,
    Nanos layer_ns, Nanos layer_token_ns, Nanos expert_ns, Nanos expert_token_ns, Nanos wait_ns,
    const std::shared_ptr<PyPredictor>& predictor, const std::optional<py::dict>& prefetch,
    const std::optional<std::pair<double, std::int32_t>>& emulate, bool clairvoyant,
    bool streaming) {
  ReplayOptions options;
  options.geometry = {layers, experts_per_layer, top_k};
  options.expert_bytes = expert_bytes;
  options.link.bytes_per_second = bytes_per_second;
  options.link.latency = latency_ns;
  options.link.overhead = overhead_ns;
  options.times = {pass_ns, layer_ns, layer_token_ns, expert_ns, expert_token_ns, wait_ns};
  options.engine.slots = slots;
  if (const auto* name = std::get_if<std::string>(&policy)) {
    options.engine.policy = *name;
  } else {
    options.engine.make_policy = python_policy(std::get<py::function>(policy));
  }
  options.engine.pool = pool_from_name(pool);
  options.engine.keep = keep;
  options.engine.mover.chunk_bytes = chunk_bytes;
  options.engine.mover.prefetch_chunks = prefetch_chunks;
  if (prefetch) options.engine.prefetch = rule_from(*prefetch);
  if (emulate) options.emulate = EmulatorOptions{emulate->first, emulate->second};
  options.clairvoyant = clairvoyant;
  options.engine.stream = streaming;
  if (predictor) {
    require_same(options.geometry, predictor->geometry());
    options.predictor = [predictor] { return predictor->make(); };
  }
  return std::make_unique<Replay>(std::move(options));
}

}  // namespace

void register_sim(py::module_& m) {
  py::class_<Replay>(m, "Replay")
      .def(py::init(&make_replay), py::kw_only(), py::arg("layers"), py::arg("experts_per_layer"),
           py::arg("top_k"), py::arg("slots"), py::arg("expert_bytes"), py::arg("policy") = "lru",
           py::arg("pool") = "global", py::arg("keep") = true, py::arg("bytes_per_second"),
           py::arg("latency_ns") = 0, py::arg("overhead_ns") = 0, py::arg("chunk_bytes") = 1 << 20,
           py::arg("prefetch_chunks") = 2, py::arg("pass_ns") = 0, py::arg("layer_ns") = 0,
           py::arg("layer_token_ns") = 0, py::arg("expert_ns") = 0, py::arg("expert_token_ns") = 0,
           py::arg("wait_ns") = 0, py::arg("predictor") = nullptr, py::arg("prefetch") = py::none(),
           py::arg("emulate") = py::none(), py::arg("clairvoyant") = false,
           py::arg("streaming") = true)
      .def(
          "decode",
          [](Replay& self, Routes routes, std::optional<Gates> gates, std::optional<Next> next,
             std::int32_t batch, std::optional<Gates> hidden, std::optional<Routes> ids,
             std::optional<Gates> entering) {
            const PyChunk chunk{
                std::move(routes), std::move(gates),   std::move(next), std::move(hidden), {},
                std::move(ids),    std::move(entering)};
            const Replay::Chunk spans = chunk.chunk();
            py::gil_scoped_release free;
            self.decode(spans, batch);
          },
          py::arg("routes"), py::arg("gates") = py::none(), py::arg("next_use") = py::none(),
          py::arg("batch") = 1, py::arg("hidden") = py::none(), py::arg("ids") = py::none(),
          py::arg("entering") = py::none())
      .def(
          "prefill",
          [](Replay& self, Routes routes, std::optional<Gates> gates, std::optional<Next> next,
             std::optional<Gates> hidden, std::optional<Routes> ids,
             std::optional<Gates> entering) {
            const PyChunk chunk{
                std::move(routes), std::move(gates),   std::move(next), std::move(hidden), {},
                std::move(ids),    std::move(entering)};
            const Replay::Chunk spans = chunk.chunk();
            py::gil_scoped_release free;
            self.prefill(spans);
          },
          py::arg("routes"), py::arg("gates") = py::none(), py::arg("next_use") = py::none(),
          py::arg("hidden") = py::none(), py::arg("ids") = py::none(),
          py::arg("entering") = py::none())
      .def(
          "packed",
          [](Replay& self, Routes routes, const Routes& passes, std::optional<Gates> gates,
             std::optional<Next> next, std::optional<Next> streams, std::optional<Routes> ids) {
            if (passes.ndim() != 2 || passes.shape(1) != 2) {
              throw InvalidArgument("passes are [passes, 2]: tokens, and how many are decoded");
            }
            std::vector<Replay::Pass> list;
            for (const std::int32_t* at = passes.data(); at < passes.data() + passes.size();
                 at += 2)
              list.push_back({at[0], at[1]});
            const PyChunk chunk{std::move(routes),  std::move(gates), std::move(next), {},
                                std::move(streams), std::move(ids)};
            const Replay::Chunk spans = chunk.chunk();
            std::vector<Nanos> ends;
            {
              py::gil_scoped_release free;
              self.packed(spans, list, ends);
            }
            return Next(static_cast<py::ssize_t>(ends.size()), ends.data());
          },
          py::arg("routes"), py::arg("passes"), py::arg("gates") = py::none(),
          py::arg("next_use") = py::none(), py::arg("streams") = py::none(),
          py::arg("ids") = py::none())
      .def("restart", &Replay::restart)
      .def_property_readonly("rooms", &Replay::rooms)
      .def("result", [](const Replay& self) { return to_dict(self.result()); });

  py::class_<NextUse>(m, "NextUse")
      .def(py::init([](std::int32_t layers, std::int32_t experts_per_layer, std::int32_t top_k,
                       std::vector<std::int32_t> rooms) {
             if (std::ssize(rooms) != layers) {
               throw InvalidArgument("rooms name the slots of each of " + std::to_string(layers) +
                                     " layers, not of " + std::to_string(rooms.size()));
             }
             return std::make_unique<NextUse>(Geometry{layers, experts_per_layer, top_k},
                                              std::move(rooms), 0);
           }),
           py::kw_only(), py::arg("layers"), py::arg("experts_per_layer"), py::arg("top_k"),
           py::arg("rooms"))
      .def(
          "prepend",
          [](NextUse& self, const Routes& routes, std::int32_t batch) {
            std::vector<std::int64_t> out;
            {
              const std::span<const std::int32_t> ids = span_of(routes);
              py::gil_scoped_release free;
              self.prepend(ids, batch, out);
            }
            return Next(static_cast<py::ssize_t>(out.size()), out.data());
          },
          py::arg("routes"), py::arg("batch") = 1);

  py::class_<StackDistances>(m, "StackDistances")
      .def(py::init([](std::int32_t layers, std::int32_t experts_per_layer, std::int32_t top_k) {
             return std::make_unique<StackDistances>(Geometry{layers, experts_per_layer, top_k});
           }),
           py::kw_only(), py::arg("layers"), py::arg("experts_per_layer"), py::arg("top_k"))
      .def(
          "decode",
          [](StackDistances& self, const Routes& routes, const Next& next) {
            const std::span<const std::int32_t> ids = span_of(routes);
            const std::span<const std::int64_t> uses = span_of(next);
            py::gil_scoped_release free;
            self.decode(ids, uses);
          },
          py::arg("routes"), py::arg("next_use"))
      .def_property_readonly("accesses", &StackDistances::accesses)
      .def("lru", [](const StackDistances& self) { return to_array(self.lru()); })
      .def("clairvoyant", [](const StackDistances& self) { return to_array(self.clairvoyant()); })
      .def("lru_per_layer",
           [](const StackDistances& self) { return to_array(self.lru_per_layer()); })
      .def("clairvoyant_per_layer",
           [](const StackDistances& self) { return to_array(self.clairvoyant_per_layer()); });
}

}  // namespace prophet
