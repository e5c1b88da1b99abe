// What this build and this machine can do: kernels, policies, measured bandwidths.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/parts.h"
#include "core/error.h"
#include "device/cpu/cpu_backend.h"
#include "device/cpu/disk_bandwidth.h"
#include "kernels/expert_ffn.h"
#include "kernels/memory_bandwidth.h"
#include "policy/eviction_policy.h"

namespace py = pybind11;

namespace prophet {

void register_machine(py::module_& m) {
  m.def("kernel_isa", [] { return std::string(kernel_isa()); });
  m.def("kernel_isas", &kernel_isas);
  m.def(
      "set_kernel_isa", [](const std::string& isa) { set_kernel_isa(isa); }, py::arg("isa"));
  m.def("eviction_policies", &eviction_policy_names);
  m.def("build_info", [] {
    py::dict out;
    out["version"] = PROPHET_VERSION;
    out["compiler"] = __VERSION__;
#if PROPHET_HAVE_URING
    out["uring"] = "yes";
#else
    out["uring"] = "no";
#endif
    return out;
  });
  m.def(
      "memory_bandwidth",
      [](int threads, double seconds) {
        py::gil_scoped_release free;
        return read_bandwidth(threads, seconds);
      },
      py::arg("threads"), py::arg("seconds"));
  m.def(
      "read_bandwidth",
      [](const std::string& path, double seconds, std::uint64_t chunk_bytes, int depth,
         const std::string& io) {
        ReadBandwidth measured;
        {
          const IoKind kind = io_from_name(io);
          py::gil_scoped_release free;
          measured = read_bandwidth(path, seconds, chunk_bytes, depth, kind);
        }
        py::dict out;
        out["bytes_per_second"] = measured.bytes_per_second;
        out["seconds"] = measured.seconds;
        out["bytes"] = measured.bytes;
        out["p50_ms"] = measured.p50_ms;
        out["p99_ms"] = measured.p99_ms;
        out["io"] = measured.io;
        return out;
      },
      py::arg("path"), py::arg("seconds"), py::arg("chunk_bytes") = 1 << 20, py::arg("depth") = 16,
      py::arg("io") = "auto");
}

}  // namespace prophet
