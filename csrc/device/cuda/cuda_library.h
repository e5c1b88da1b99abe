// The CUDA library, looked for at run time: whatever is wrong with it or with the machine means no
// devices, and a sentence that says why and what to do.
//
// PROPHET_CUDA_LIB names the library; without it, it is libprophet_cuda.so beside the module that
// this code belongs to. It stays loaded until the process ends, and opening it again is cheap.
#pragma once

#include <memory>
#include <string>

#include "device/cuda/cuda_api.h"

namespace prophet {

class CudaLibrary {
 public:
  // Never throws for what is wrong with library or machine. An empty path: as said above.
  static std::shared_ptr<const CudaLibrary> open(const std::string& path = "");

  // Devices that the driver shows; 0 when none of them can run this library's kernels.
  int devices() const { return devices_; }
  // The first device that can, and what was found out about it. Throw DeviceError without one.
  int device() const;
  const CudaDeviceInfo& info() const;
  // Why there is no device; empty where there is one.
  const std::string& reason() const { return reason_; }
  const std::string& path() const { return path_; }

  // False: nothing was opened that has the table; api() then throws DeviceError with the reason.
  bool loaded() const { return api_ != nullptr; }
  const CudaApi& api() const;
  // Another table that the library exports through a function `const void* NAME()`; null: none.
  const void* table(const char* name) const;

 private:
  CudaLibrary() = default;
  void load(const std::string& path);
  void find_devices();

  std::string path_, reason_;
  void* handle_ = nullptr;
  const CudaApi* api_ = nullptr;
  int devices_ = 0, device_ = 0;
  CudaDeviceInfo info_{};
};

// Throws DeviceError when code is not 0: "WHAT failed: TEXT (NAME). WAY OUT". `what` names the
// operation with its sizes, such as "allocating 3.2 GB of device memory".
void cuda_check(const CudaApi& api, int code, const std::string& what);
// The sentence alone.
std::string cuda_sentence(const CudaApi& api, int code, const std::string& what);

}  // namespace prophet
