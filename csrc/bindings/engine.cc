// prophet_ext.Engine and prophet_ext.Lease: the engine on the CPU backend, for Python.
#include "engine/engine.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <thread>

#include "bindings/backend.h"
#include "bindings/counters.h"
#include "bindings/parts.h"
#include "bindings/predictor.h"
#include "bindings/prefetch.h"
#include "core/error.h"
#include "device/cpu/cpu_backend.h"
#include "store/extent_store.h"

namespace py = pybind11;

namespace prophet {
namespace {

using Pieces = py::array_t<std::uint64_t, py::array::c_style | py::array::forcecast>;

constexpr std::size_t kTimelineEvents = 1'000'000;  // about 48 MB, kept only when asked for

const char* name_of(Residency state) {
  constexpr const char* names[] = {"absent", "queued", "loading", "resident", "leased"};
  return names[static_cast<int>(state)];
}

struct EngineArguments {
  int top_k, slots;
  std::string policy, pool;
  bool keep;
  int threads;
  std::uint64_t chunk_bytes;
  bool timeline;
  PrefetchRule prefetch;
  bool planes;
  BackendArguments backend;
  bool device_forecasts;
};

// What Python holds. The engine goes at close(); the backend, and with it the arena, stays until
// the last view of it has gone, so that a view used too late is stale and never a crash.
class PyEngine {
 public:
  PyEngine(const std::vector<std::string>& files, const Pieces& pieces, const EngineArguments& a,
           const PyPredictor* predictor)
      : policy_(a.policy), predictor_(predictor ? predictor->name() : ""), planes_(a.planes) {
    if (pieces.ndim() != 4 || pieces.shape(3) != 3) {
      throw InvalidArgument("pieces is [layers, experts, pieces, 3]: file, offset, bytes");
    }
    const ChosenBackend chosen = make_backend(a.backend);
    backend_ = chosen.backend;
    emulated_ = chosen.emulated;
    const std::vector<FileInfo> infos = backend_->open(files);
    const Geometry geometry{static_cast<std::int32_t>(pieces.shape(0)),
                            static_cast<std::int32_t>(pieces.shape(1)), a.top_k};
    std::vector<Piece> list(pieces.size() / 3);
    const std::uint64_t* row = pieces.data();
    for (Piece& piece : list) {
      const auto file = std::min<std::uint64_t>(row[0], INT32_MAX);  // what is too large stays so
      piece = {static_cast<std::int32_t>(file), row[1], row[2]};
      row += 3;
    }
    auto store =
        std::make_shared<ExtentStore>(geometry, infos, list, static_cast<int>(pieces.shape(2)),
                                      static_cast<std::uint64_t>(backend_->alignment()),
                                      a.planes ? Arrangement::planes : Arrangement::slots);
    EngineOptions options;
    options.slots = a.slots;
    options.policy = a.policy;
    options.pool = pool_from_name(a.pool);
    options.keep = a.keep;
    options.threads =
        a.threads > 0 ? a.threads : std::max(1, int(std::thread::hardware_concurrency()));
    options.mover.chunk_bytes = a.chunk_bytes;
    options.timeline_events = a.timeline ? kTimelineEvents : 0;
    options.prefetch = a.prefetch;
    options.device = chosen.tables;
    options.device_forecasts = a.device_forecasts;
    if (predictor) require_same(geometry, predictor->geometry());
    engine_ =
        std::make_shared<Engine>(store, backend_, options, predictor ? predictor->make() : nullptr);
  }

  const std::shared_ptr<Engine>& engine() const {
    if (!engine_) throw StateError("the engine is closed: load the model again to go on");
    return engine_;
  }
  const std::shared_ptr<Backend>& backend() const {
    engine();  // throws when closed
    return backend_;
  }
  const std::string& policy() const { return policy_; }
  const std::string& predictor() const { return predictor_; }
  bool planes() const { return planes_; }
  bool emulated() const { return emulated_; }

  void close() {
    if (engine_) engine_->close();
    engine_.reset();
    backend_.reset();
  }

 private:
  std::string policy_, predictor_;
  bool planes_, emulated_ = false;
  std::shared_ptr<Backend> backend_;
  std::shared_ptr<Engine> engine_;
};

// A lease keeps its engine alive and ends with the Python object at the latest.
class PyLease {
 public:
  explicit PyLease(std::shared_ptr<Engine> engine)
      : engine_(std::move(engine)), lease_(std::make_unique<Lease>()) {}
  ~PyLease() { release(std::nullopt); }
  PyLease(const PyLease&) = delete;

  void begin(std::int32_t layer, const std::vector<std::int32_t>& experts) {
    engine_->lease(layer, experts, *lease_);
  }
  std::vector<std::uint64_t> wait(std::int32_t expert) {
    if (!lease_) throw StateError("this lease was released");
    std::int32_t slot = 0;
    {
      py::gil_scoped_release free;
      slot = engine_->wait(*lease_, expert);
    }
    const WeightStore& store = engine_->store();
    const ExpertKey key{lease_->entries.front().key.layer, expert};
    std::vector<std::uint64_t> at(store.pieces());
    for (int piece = 0; piece < store.pieces(); ++piece) {
      at[piece] = store.place(slot, store.piece_at(key, piece), engine_->slots());
    }
    return at;
  }
  void release(const std::optional<std::uintptr_t>& stream) {
    if (!lease_) return;
    if (stream) return engine_->release(std::move(lease_), *stream);
    engine_->release(*lease_);
  }

 private:
  std::shared_ptr<Engine> engine_;
  std::unique_ptr<Lease> lease_;  // null: handed back to end with a stream
};

// The arena as a read-only buffer that keeps the backend alive.
struct Arena {
  std::shared_ptr<Backend> backend;
  std::span<const std::byte> bytes;
};

py::dict timeline(const Engine& engine) {
  const std::vector<Event> events = engine.timeline();
  auto column = [&](auto field) {
    py::array_t<std::int64_t> values(static_cast<py::ssize_t>(events.size()));
    std::int64_t* to = values.mutable_data();
    for (const Event& event : events) *to++ = static_cast<std::int64_t>(field(event));
    return values;
  };
  py::dict out;
  out["begin"] = column([](const Event& e) { return e.begin; });
  out["end"] = column([](const Event& e) { return e.end; });
  out["kind"] = column([](const Event& e) { return e.kind; });
  out["layer"] = column([](const Event& e) { return e.key.layer; });
  out["expert"] = column([](const Event& e) { return e.key.expert; });
  out["bytes"] = column([](const Event& e) { return e.bytes; });
  return out;
}

void forward(const PyEngine& self, std::int32_t layer, std::int32_t tokens, std::uintptr_t x,
             const std::string& dtype, std::uintptr_t ids, std::uintptr_t weights,
             const std::string& weights_dtype, std::uintptr_t out, std::int32_t top_k,
             const std::optional<std::uintptr_t>& stream) {
  LayerBatch batch;
  batch.tokens = tokens;
  batch.top_k = top_k;
  batch.dtype = dtype_from_name(dtype);
  batch.weights_dtype = dtype_from_name(weights_dtype);
  batch.x = reinterpret_cast<const void*>(x);
  batch.ids = reinterpret_cast<const std::int64_t*>(ids);
  batch.weights = reinterpret_cast<const void*>(weights);
  batch.out = reinterpret_cast<void*>(out);
  batch.on_device = stream.has_value();
  batch.stream = stream.value_or(0);
  const std::shared_ptr<Engine> engine = self.engine();
  py::gil_scoped_release free;
  engine->forward(layer, batch);
}

// What the router said in a layer that is served by leases; addresses as in forward.
void observe(const PyEngine& self, std::int32_t layer, std::int32_t tokens, std::int32_t top_k,
             std::uintptr_t ids, std::uintptr_t weights, const std::string& weights_dtype,
             std::uintptr_t hidden, std::size_t hidden_width, const std::string& hidden_dtype) {
  const std::size_t pairs = std::size_t(tokens) * std::size_t(top_k);
  std::vector<std::int32_t> experts(pairs);
  const auto* wide = reinterpret_cast<const std::int64_t*>(ids);
  for (std::size_t i = 0; i < pairs; ++i) {
    experts[i] = static_cast<std::int32_t>(std::min<std::int64_t>(wide[i], INT32_MAX));
  }
  std::vector<float> gates(pairs), row(hidden_width);
  widen(dtype_from_name(weights_dtype), reinterpret_cast<const void*>(weights), gates.data(),
        pairs);
  if (hidden != 0) {
    widen(dtype_from_name(hidden_dtype), reinterpret_cast<const void*>(hidden), row.data(),
          hidden_width);
  }
  const std::shared_ptr<Engine> engine = self.engine();
  py::gil_scoped_release free;
  engine->observe(
      {layer, tokens, top_k, experts.data(), gates.data(), hidden != 0 ? row.data() : nullptr});
}

// What is known before a layer runs; addresses as in forward, 0: not told.
void approach(const PyEngine& self, std::int32_t layer, std::int32_t tokens, std::uintptr_t ids,
              std::uintptr_t entering, std::size_t width, const std::string& dtype) {
  std::vector<std::int32_t> fed(ids != 0 ? std::size_t(tokens) : 0);
  const auto* wide = reinterpret_cast<const std::int64_t*>(ids);
  for (std::size_t i = 0; i < fed.size(); ++i) {
    fed[i] = std::int32_t(std::clamp<std::int64_t>(wide[i], -1, INT32_MAX));
  }
  std::vector<float> row(entering != 0 ? width : 0);
  if (entering != 0) {
    widen(dtype_from_name(dtype), reinterpret_cast<const void*>(entering), row.data(), width);
  }
  const std::shared_ptr<Engine> engine = self.engine();
  py::gil_scoped_release free;
  engine->approach(
      {layer, tokens, ids != 0 ? fed.data() : nullptr, entering != 0 ? row.data() : nullptr},
      entering != 0 ? width : 0);
}

void set_ffn(const PyEngine& self, std::int32_t hidden, std::int32_t inter,
             const std::string& dtype, const std::string& activation, bool has_gate,
             std::pair<int, std::uint64_t> gate, std::pair<int, std::uint64_t> up,
             std::pair<int, std::uint64_t> down) {
  if (self.planes()) {
    throw InvalidArgument("an arena in planes is served by leases: forward needs one without");
  }
  FfnLayout layout;
  layout.shape = {hidden, inter, dtype_from_name(dtype), activation_from_name(activation),
                  has_gate};
  layout.gate = {gate.first, gate.second};
  layout.up = {up.first, up.second};
  layout.down = {down.first, down.second};
  self.engine()->set_ffn(layout);
}

std::unique_ptr<PyLease> lease(const PyEngine& self, std::int32_t layer,
                               const std::vector<std::int32_t>& experts) {
  auto out = std::make_unique<PyLease>(self.engine());
  py::gil_scoped_release free;
  out->begin(layer, experts);
  return out;
}

void want(const PyEngine& self,
          const std::vector<std::tuple<std::int32_t, std::int32_t, float, std::int64_t>>& entries) {
  std::vector<Prefetch> wishes;
  for (const auto& [layer, expert, confidence, deadline] : entries) {
    wishes.push_back({{layer, expert}, confidence, deadline});
  }
  self.engine()->want(wishes);
}

}  // namespace

PoolScope pool_from_name(const std::string& name) {
  if (name == "global") return PoolScope::global;
  if (name == "per-layer") return PoolScope::per_layer;
  throw InvalidArgument("pool is global or per-layer, not '" + name + "'");
}

void require_same(const Geometry& model, const Geometry& trained) {
  if (model.layers == trained.layers && model.experts_per_layer == trained.experts_per_layer) {
    return;
  }
  auto words = [](const Geometry& g) {
    return std::to_string(g.layers) + " layers of " + std::to_string(g.experts_per_layer) +
           " experts";
  };
  throw InvalidArgument("the predictor was trained for " + words(trained) + ", this model has " +
                        words(model) + "; choose a predictor of this model, or none");
}

DType dtype_from_name(const std::string& name) {
  if (name == "bf16") return DType::bf16;
  if (name == "f16") return DType::f16;
  if (name == "f32") return DType::f32;
  throw InvalidArgument("element type is bf16, f16 or f32, not '" + name + "'");
}

IoKind io_from_name(const std::string& name) {
  if (name == "auto") return IoKind::auto_;
  if (name == "uring") return IoKind::uring;
  if (name == "pread") return IoKind::pread;
  throw InvalidArgument("io is auto, uring or pread, not '" + name + "'");
}

void register_engine(py::module_& m) {
  py::class_<Arena>(m, "_Arena", py::buffer_protocol()).def_buffer([](Arena& arena) {
    return py::buffer_info(
        reinterpret_cast<std::uint8_t*>(const_cast<std::byte*>(arena.bytes.data())),
        static_cast<py::ssize_t>(arena.bytes.size()), /*readonly=*/true);
  });

  py::class_<PyLease>(m, "Lease")
      .def("wait", &PyLease::wait, py::arg("expert"))
      .def("release", &PyLease::release, py::arg("stream") = py::none())
      .def("__enter__", [](PyLease& self) -> PyLease& { return self; })
      .def("__exit__",
           [](PyLease& self, py::object, py::object, py::object) { self.release(std::nullopt); });

  py::class_<PyEngine>(m, "Engine")
      .def(
          py::init([](const std::vector<std::string>& files, const Pieces& pieces, int top_k,
                      int slots, const std::string& policy, const std::string& pool, bool keep,
                      const std::string& io, bool direct, int threads, int depth,
                      std::uint64_t chunk_bytes, bool timeline,
                      const std::shared_ptr<PyPredictor>& predictor,
                      const std::optional<py::dict>& prefetch, bool planes,
                      const std::string& backend, std::uintptr_t memory, std::uint64_t memory_bytes,
                      std::uint64_t pool_bytes, bool device_forecasts) {
            return std::make_unique<PyEngine>(
                files, pieces,
                EngineArguments{
                    top_k, slots, policy, pool, keep, threads, chunk_bytes, timeline,
                    prefetch ? rule_from(*prefetch) : PrefetchRule{}, planes,
                    BackendArguments{backend, io, direct, depth, memory, memory_bytes, pool_bytes},
                    device_forecasts},
                predictor.get());
          }),
          py::kw_only(), py::arg("files"), py::arg("pieces"), py::arg("top_k"), py::arg("slots"),
          py::arg("policy") = "lru", py::arg("pool") = "global", py::arg("keep") = true,
          py::arg("io") = "auto", py::arg("direct") = true, py::arg("threads") = 0,
          py::arg("depth") = 16, py::arg("chunk_bytes") = 1 << 20, py::arg("timeline") = false,
          py::arg("predictor") = nullptr, py::arg("prefetch") = py::none(),
          py::arg("planes") = false, py::arg("backend") = "cpu", py::arg("memory") = 0,
          py::arg("memory_bytes") = 0, py::arg("pool_bytes") = 0,
          py::arg("device_forecasts") = false)
      .def_property_readonly("layers", [](PyEngine& s) { return s.engine()->geometry().layers; })
      .def_property_readonly("experts_per_layer",
                             [](PyEngine& s) { return s.engine()->geometry().experts_per_layer; })
      .def_property_readonly("top_k", [](PyEngine& s) { return s.engine()->geometry().top_k; })
      .def_property_readonly("slots", [](PyEngine& s) { return s.engine()->slots(); })
      .def_property_readonly("slot_bytes",
                             [](PyEngine& s) { return s.engine()->store().slot_bytes(); })
      .def_property_readonly("arena_bytes", [](PyEngine& s) { return s.engine()->arena().size(); })
      .def_property_readonly("threads", [](PyEngine& s) { return s.engine()->threads(); })
      .def_property_readonly("policy", [](PyEngine& s) { return s.policy(); })
      .def_property_readonly("predictor", [](PyEngine& s) { return s.predictor(); })
      .def_property_readonly("foresight_failure",
                             [](PyEngine& s) { return s.engine()->foresight_failure(); })
      .def_property_readonly("device_forecasts_lack",
                             [](PyEngine& s) { return s.engine()->device_forecasts_lack(); })
      .def_property_readonly("backend", [](PyEngine& s) { return s.backend()->name(); })
      .def_property_readonly("io", [](PyEngine& s) { return s.backend()->description(); })
      .def(
          "pool_slots",
          [](PyEngine& s, std::int32_t layer) { return s.engine()->pool_slots(layer); },
          py::arg("layer"))
      .def_property_readonly("emulated", [](PyEngine& s) { return s.emulated(); })
      .def_property_readonly("host_visible",
                             [](PyEngine& s) { return s.backend()->host_visible(); })
      .def(
          "read",
          [](PyEngine& s, std::uint64_t at, std::uint64_t bytes, std::uintptr_t to) {
            s.engine()->read(at, {reinterpret_cast<std::byte*>(to), bytes});
          },
          py::arg("at"), py::arg("bytes"), py::arg("to"), py::call_guard<py::gil_scoped_release>())
      .def("arena",
           [](PyEngine& s) {
             if (!s.backend()->host_visible()) {
               throw StateError("the arena is GPU memory, which Python cannot view: use read");
             }
             return py::memoryview(py::cast(Arena{s.backend(), s.engine()->arena()}));
           })
      .def("set_ffn", &set_ffn, py::kw_only(), py::arg("hidden"), py::arg("inter"),
           py::arg("dtype"), py::arg("activation"), py::arg("has_gate"), py::arg("gate"),
           py::arg("up"), py::arg("down"))
      .def("forward", &forward, py::arg("layer"), py::arg("tokens"), py::arg("x"), py::arg("dtype"),
           py::arg("ids"), py::arg("weights"), py::arg("weights_dtype"), py::arg("out"),
           py::arg("top_k"), py::arg("stream") = py::none())
      .def("lease", &lease, py::arg("layer"), py::arg("experts"))
      .def(
          "step",
          [](PyEngine& s, std::int32_t layer, std::int32_t tokens,
             const std::vector<std::int32_t>& counts) {
            return s.engine()->step(layer, tokens, counts);
          },
          py::arg("layer"), py::arg("tokens") = 1, py::arg("counts") = std::vector<std::int32_t>())
      .def_property(
          "streaming", [](PyEngine& s) { return s.engine()->streaming(); },
          [](PyEngine& s, bool may) { s.engine()->set_streaming(may); })
      .def("observe", &observe, py::arg("layer"), py::arg("tokens"), py::arg("top_k"),
           py::arg("ids"), py::arg("weights"), py::arg("weights_dtype"), py::arg("hidden"),
           py::arg("hidden_width"), py::arg("hidden_dtype"))
      .def("approach", &approach, py::arg("layer"), py::arg("tokens"), py::arg("ids") = 0,
           py::arg("entering") = 0, py::arg("width") = 0, py::arg("dtype") = "f32")
      .def(
          "streams",
          [](PyEngine& s, std::vector<std::int64_t> rows) { s.engine()->streams(std::move(rows)); },
          py::arg("rows"))
      .def("want", &want, py::arg("entries"))
      .def(
          "state",
          [](PyEngine& s, std::int32_t layer, std::int32_t expert) {
            return name_of(s.engine()->state({layer, expert}));
          },
          py::arg("layer"), py::arg("expert"))
      .def("counters", [](PyEngine& s) { return to_dict(s.engine()->counters()); })
      .def("timeline", [](PyEngine& s) { return timeline(*s.engine()); })
      .def_static("timeline_kinds",
                  [] {
                    std::vector<std::string> names;
                    for (int kind = 0; kind < kEventKinds; ++kind) {
                      names.emplace_back(prophet::name_of(static_cast<EventKind>(kind)));
                    }
                    return names;
                  })
      .def("close", &PyEngine::close, py::call_guard<py::gil_scoped_release>())
      .def("__enter__", [](PyEngine& self) -> PyEngine& { return self; })
      .def("__exit__", [](PyEngine& self, py::object, py::object, py::object) { self.close(); });
}

}  // namespace prophet
