// Devices, errors and functions: cudaGetDeviceCount to cudaGetErrorString.
#include <cstdio>
#include <cstring>

#include "memory.h"
#include "runtime.h"
#include "settings.h"

namespace prophet::emulation {
namespace {

thread_local int device_of_thread = 0;

struct Named {
  cudaError_t code;
  const char* name;
  const char* text;
};

constexpr Named kErrors[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorDevicesUnavailable, "cudaErrorDevicesUnavailable",
     "CUDA-capable device(s) is/are busy or unavailable"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorNoKernelImageForDevice, "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {cudaErrorECCUncorrectable, "cudaErrorECCUncorrectable", "uncorrectable ECC error encountered"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorIllegalState, "cudaErrorIllegalState",
     "the operation cannot be performed in the present state"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorHostMemoryAlreadyRegistered, "cudaErrorHostMemoryAlreadyRegistered",
     "part or all of the requested memory range is already mapped"},
    {cudaErrorHostMemoryNotRegistered, "cudaErrorHostMemoryNotRegistered",
     "pointer does not correspond to a registered memory region"},
    {cudaErrorLaunchFailure, "cudaErrorLaunchFailure", "unspecified launch failure"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureIsolation, "cudaErrorStreamCaptureIsolation",
     "dependency created on uncaptured work in another stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
};

const Named* named(cudaError_t code) {
  for (const Named& each : kErrors)
    if (each.code == code) return &each;
  return nullptr;
}

bool has(int device) { return device >= 0 && device < settings().devices; }

}  // namespace

int current_device() { return device_of_thread; }
void set_current_device(int device) { device_of_thread = device; }

}  // namespace prophet::emulation

using namespace prophet::emulation;

extern "C" {

cudaError_t cudaGetDeviceCount(int* count) {
  PROPHET_ENTER();
  const Settings machine = settings();
  *count = 0;
  if (machine.driver < CUDART_VERSION) return leave(cudaErrorInsufficientDriver);
  if (machine.devices == 0) return leave(cudaErrorNoDevice);
  *count = machine.devices;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* version) {
  PROPHET_ENTER();
  *version = settings().driver;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  PROPHET_ENTER();
  *version = CUDART_VERSION;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  PROPHET_ENTER();
  if (!has(device)) return leave(cudaErrorInvalidDevice);
  set_current_device(device);
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  PROPHET_ENTER();
  *device = current_device();
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* out, int device) {
  PROPHET_ENTER();
  if (!has(device)) return leave(cudaErrorInvalidDevice);
  std::memset(out, 0, sizeof(*out));
  std::snprintf(out->name, sizeof(out->name), "Emulated GPU %d", device);
  out->totalGlobalMem = settings().memory;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char* out, int length, int device) {
  PROPHET_ENTER();
  if (!has(device)) return leave(cudaErrorInvalidDevice);
  std::snprintf(out, static_cast<std::size_t>(length), "0000:%02x:00.0", device);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  PROPHET_ENTER();
  if (!has(device)) return leave(cudaErrorInvalidDevice);
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = settings().major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = settings().minor;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = 4;
      break;
    case cudaDevAttrAsyncEngineCount:
      *value = 2;
      break;
    case cudaDevAttrCanMapHostMemory:
      *value = 1;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(kSharedMost);
      break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(kSharedPerBlock);
      break;
    default:
      return leave(cudaErrorInvalidValue);
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  PROPHET_ENTER();
  *least = 0;
  *greatest = 1 - kPriorities;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return last_error(true); }
cudaError_t cudaPeekAtLastError() { return last_error(false); }

const char* cudaGetErrorName(cudaError_t code) {
  const Named* found = named(code);
  return found ? found->name : "cudaErrorUnknown";
}

const char* cudaGetErrorString(cudaError_t code) {
  const Named* found = named(code);
  return found ? found->text : "unknown error";
}

}  // extern "C"
