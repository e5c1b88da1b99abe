#include "device/cuda/cuda_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>

#include "core/error.h"

namespace prophet {
namespace {

constexpr const char* kFileName = "libprophet_cuda.so";

std::string release(int version) {  // 13000 -> "13.0"
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string capability(const CudaDeviceInfo& info) {
  return std::to_string(info.major) + "." + std::to_string(info.minor);
}

// Of the shared object (or program) that this code was linked into.
std::filesystem::path own_folder() {
  Dl_info found{};
  if (!dladdr(reinterpret_cast<const void*>(&own_folder), &found) || !found.dli_fname) return {};
  return std::filesystem::absolute(found.dli_fname).parent_path();
}

std::string way_out(int code) {
  switch (code) {
    case kCudaOutOfMemory:
      return " Ask for less, or free what other programs and torch hold on the device.";
    case kCudaNoKernelImage:
      return " Build Prophet for this device's architecture (CMAKE_CUDA_ARCHITECTURES).";
    case kCudaInvalidValue:
    case kCudaNotReady:
    case kCudaNotSupported:
      return "";
    default:
      return " If every later call fails as well, the device is lost to this process: start it "
             "again.";
  }
}

}  // namespace

std::shared_ptr<const CudaLibrary> CudaLibrary::open(const std::string& path) {
  std::shared_ptr<CudaLibrary> library(new CudaLibrary);
  library->load(path);
  if (library->loaded()) library->find_devices();
  return library;
}

void CudaLibrary::load(const std::string& path) {
  const char* named = std::getenv("PROPHET_CUDA_LIB");
  const bool asked = !path.empty() || (named && *named);
  path_ = !path.empty() ? path : asked ? named : (own_folder() / kFileName).string();
  if (!std::filesystem::exists(path_)) {
    reason_ = asked ? "There is no file " + path_ + ": PROPHET_CUDA_LIB should name a CUDA library."
                    : "This build has no CUDA library (" + path_ +
                          "): no nvcc was found when it was built. Install the CUDA toolkit, set "
                          "CUDA_HOME and build again.";
    return;
  }
  // Local: another CUDA runtime in this process (torch's) keeps its own symbols.
  handle_ = dlopen(path_.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
  if (!handle_) {
    const char* why = dlerror();
    reason_ = "The CUDA library did not load: " + std::string(why ? why : path_) + ".";
    return;
  }
  const auto* found = static_cast<const CudaApi*>(table("prophet_cuda_api"));
  if (!found) {
    reason_ = path_ + " is no CUDA library of Prophet: it exports no prophet_cuda_api.";
  } else if (found->version != kCudaApiVersion || found->size != sizeof(CudaApi)) {
    reason_ = path_ + " belongs to another release of Prophet (version " +
              std::to_string(found->version) + " of its table, " + std::to_string(kCudaApiVersion) +
              " is expected): install prophet-moe again, and unset PROPHET_CUDA_LIB.";
  } else {
    api_ = found;
  }
}

void CudaLibrary::find_devices() {
  int count = 0, driver = 0, runtime = 0;
  const int error = api_->device_count(&count);
  if (error || count == 0) {
    if (api_->versions(&driver, &runtime) == kCudaSuccess && driver == 0)
      reason_ =
          "No NVIDIA driver is installed (or, in a container, none is visible: start it with "
          "the GPU, such as docker run --gpus all).";
    else if (error == kCudaDriverTooOld)
      reason_ = "The NVIDIA driver supports CUDA " + release(driver) + " and the library needs " +
                release(runtime) + ": update the driver, or build with an older toolkit.";
    else if (error == 0 || error == kCudaNoDevice)
      reason_ = "The NVIDIA driver shows no device: look at nvidia-smi and CUDA_VISIBLE_DEVICES.";
    else
      reason_ = cuda_sentence(*api_, error, "asking for CUDA devices");
    return;
  }
  for (int device = 0; device < count; ++device) {
    CudaDeviceInfo info{};
    const int failed = api_->device_info(device, &info);
    const int unusable = failed ? failed : info.usable;
    if (!unusable) {
      devices_ = count;
      device_ = device;
      info_ = info;
      reason_.clear();
      return;
    }
    if (!reason_.empty()) continue;  // the first device's reason stands for all
    if (!failed && unusable == kCudaNoKernelImage)
      reason_ = std::string(info.name) + " has compute capability " + capability(info) +
                ", for which this library was not built: build again with CMAKE_ARGS="
                "-DCMAKE_CUDA_ARCHITECTURES=" +
                std::to_string(info.major) + std::to_string(info.minor) + ".";
    else
      reason_ = cuda_sentence(*api_, unusable, "preparing CUDA device " + std::to_string(device));
  }
}

int CudaLibrary::device() const {
  if (!devices_) throw DeviceError(reason_);
  return device_;
}

const CudaDeviceInfo& CudaLibrary::info() const {
  if (!devices_) throw DeviceError(reason_);
  return info_;
}

const CudaApi& CudaLibrary::api() const {
  if (!api_) throw DeviceError(reason_);
  return *api_;
}

const void* CudaLibrary::table(const char* name) const {
  using Table = const void* (*)();
  void* symbol = handle_ ? dlsym(handle_, name) : nullptr;
  return symbol ? reinterpret_cast<Table>(symbol)() : nullptr;
}

std::string cuda_sentence(const CudaApi& api, int code, const std::string& what) {
  return what + " failed: " + api.error_text(code) + " (" + api.error_name(code) + ")." +
         way_out(code);
}

void cuda_check(const CudaApi& api, int code, const std::string& what) {
  if (code != kCudaSuccess) throw DeviceError(cuda_sentence(api, code, what));
}

}  // namespace prophet
