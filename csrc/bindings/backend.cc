#include "bindings/backend.h"

#include "bindings/parts.h"
#include "core/error.h"
#include "device/cpu/cpu_backend.h"
#include "device/cuda/cuda_backend.h"
#include "device/cuda/cuda_library.h"
#include "kernels/cuda_kernels.h"

namespace prophet {
namespace {

const CudaKernels& kernels_of(const CudaLibrary& library) {
  const auto* kernels = static_cast<const CudaKernels*>(library.table("prophet_cuda_kernels"));
  if (kernels == nullptr || kernels->version != kCudaKernelsVersion ||
      kernels->size != sizeof(CudaKernels)) {
    throw DeviceError(library.path() +
                      " was built from other sources than this module: build both together");
  }
  return *kernels;
}

}  // namespace

ChosenBackend make_backend(const BackendArguments& a) {
  CpuOptions disk;
  disk.io = io_from_name(a.io);
  disk.direct = a.direct;
  disk.depth = a.depth;
  if (a.kind == "cpu") return {make_cpu_backend(disk), {}, false};
  if (a.kind != "cuda") {
    throw InvalidArgument("backend is cpu or cuda, not '" + a.kind + "'");
  }
  const std::shared_ptr<const CudaLibrary> library = CudaLibrary::open();
  CudaOptions cuda;
  cuda.device = library->device();
  cuda.api = &library->api();
  cuda.memory = reinterpret_cast<void*>(a.memory);
  cuda.memory_bytes = a.memory_bytes;
  cuda.disk = disk;
  if (a.pool_bytes > 0) cuda.pool_bytes = a.pool_bytes;
  const DeviceTables tables{cuda.api, &kernels_of(*library), cuda.device};
  return {make_cuda_backend(cuda), tables, library->info().emulated != 0};
}

}  // namespace prophet
