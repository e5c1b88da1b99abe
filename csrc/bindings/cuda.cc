// What there is of CUDA: the library, the driver, the device, the link to it.
#include <pybind11/pybind11.h>

#include "bindings/parts.h"
#include "device/cuda/cuda_bandwidth.h"
#include "device/cuda/cuda_library.h"

namespace py = pybind11;

namespace prophet {
namespace {

py::dict describe(const CudaDeviceInfo& info) {
  py::dict out;
  out["name"] = info.name;
  out["pci_bus_id"] = info.pci_bus_id;
  out["capability"] = py::make_tuple(info.major, info.minor);
  out["memory_total"] = info.memory_total;
  out["memory_free"] = info.memory_free;
  out["multiprocessors"] = info.multiprocessors;
  out["copy_engines"] = info.copy_engines;
  out["can_map_host"] = info.can_map_host != 0;
  out["shared_memory_most"] = info.shared_memory_most;
  out["driver_version"] = info.driver_version;
  out["runtime_version"] = info.runtime_version;
  out["emulated"] = info.emulated != 0;
  return out;
}

}  // namespace

void register_cuda(py::module_& m) {
  m.def("cuda_info", [] {
    std::shared_ptr<const CudaLibrary> library;
    {
      py::gil_scoped_release free;  // the first call of a process prepares the device: a second
      library = CudaLibrary::open();
    }
    py::dict out;
    out["library"] = library->path();
    out["loaded"] = library->loaded();
    out["devices"] = library->devices();
    out["reason"] = library->reason();
    out["device"] = library->devices() ? py::object(describe(library->info())) : py::none();
    return out;
  });
  m.def(
      "cuda_bandwidth",
      [](double seconds) {
        CudaBandwidth found;
        {
          py::gil_scoped_release free;
          found = cuda_bandwidth(*CudaLibrary::open(), seconds);
        }
        py::dict out;
        out["to_device"] = found.to_device;
        out["to_host"] = found.to_host;
        out["both_to_device"] = found.both_to_device;
        out["both_to_host"] = found.both_to_host;
        out["pageable_to_device"] = found.pageable_to_device;
        out["registers"] = found.registers;
        return out;
      },
      py::arg("seconds"));
}

}  // namespace prophet
