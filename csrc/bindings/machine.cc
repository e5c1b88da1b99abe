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
    out["cuda"] = "no";
    return out;
  });
  m.def(
      "memory_bandwidth",
      [](int threads, double seconds) {
        py::gil_scoped_release free;
        return read_bandwidth(threads, seconds);
      },
      py::arg("threads"), py::arg("seconds"));
}

}  // namespace prophet
