// cudaMalloc to cudaMemcpyAsync.
#include <cstring>
#include <utility>
#include <vector>

#include "copy_engine.h"
#include "memory.h"
#include "runtime.h"
#include "settings.h"

namespace prophet::emulation {
namespace {

// A pageable copy that is larger makes the host wait for it.
constexpr std::size_t kStaged = std::size_t{64} << 10;

cudaMemcpyKind kind_between(const Location& to, const Location& from) {
  const bool up = to.kind == cudaMemoryTypeDevice, down = from.kind == cudaMemoryTypeDevice;
  if (up) return down ? cudaMemcpyDeviceToDevice : cudaMemcpyHostToDevice;
  return down ? cudaMemcpyDeviceToHost : cudaMemcpyHostToHost;
}

cudaError_t copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                 const void* handle) {
  const auto stream = stream_of(handle);
  if (!stream) return cudaErrorInvalidResourceHandle;
  if (bytes == 0) return cudaSuccess;
  const Location target = location_of(to, bytes), source = location_of(from, bytes);
  const cudaMemcpyKind actual = kind_between(target, source);
  if (!target.whole || !source.whole || (kind != cudaMemcpyDefault && kind != actual))
    return cudaErrorInvalidValue;
  char* into = target.access;
  const char* out_of = source.access;
  if (actual == cudaMemcpyDeviceToDevice || actual == cudaMemcpyHostToHost) {
    stream->push([=] {
      if (!device_lost()) std::memmove(into, out_of, bytes);
    });
    return cudaSuccess;
  }
  const bool up = actual == cudaMemcpyHostToDevice;
  const bool pinned = (up ? source : target).kind == cudaMemoryTypeHost;
  if (!pinned && stream->capturing()) {
    stream->spoil_capture();
    return cudaErrorStreamCaptureUnsupported;
  }
  const int device = (up ? target : source).device, priority = stream->priority();
  const Direction direction = up ? Direction::to_device : Direction::to_host;
  if (up && !pinned) {  // read now, as CUDA does, into memory that the task owns
    stream->push([=, staged = std::vector<char>(out_of, out_of + bytes)] {
      if (!device_lost())
        transfer(device, direction, priority, kPageableShare, into, staged.data(), bytes);
    });
    if (bytes > kStaged) stream->wait();
    return cudaSuccess;
  }
  stream->push([=] {
    const double share = pinned ? 1 : kPageableShare;
    if (!device_lost()) transfer(device, direction, priority, share, into, out_of, bytes);
  });
  if (!pinned) stream->wait();
  return cudaSuccess;
}

}  // namespace
}  // namespace prophet::emulation

using namespace prophet::emulation;

extern "C" {

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  PROPHET_ENTER();
  const std::size_t memory = settings().memory, used = device_memory_used(current_device());
  *total = memory;
  *free = used < memory ? memory - used : 0;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** out, size_t bytes) {
  PROPHET_ENTER();
  if (const cudaError_t error = not_while_capturing()) return error;
  return leave(allocate_device(current_device(), bytes, out));
}

cudaError_t cudaFree(void* address) {
  PROPHET_ENTER_TO_GIVE_BACK();
  if (const cudaError_t error = not_while_capturing()) return error;
  if (!address) return told;
  wait_for_all();
  const cudaError_t error = release_device(address);
  return leave(told ? told : error);
}

cudaError_t cudaHostAlloc(void** out, size_t bytes, unsigned) {
  PROPHET_ENTER();
  if (const cudaError_t error = not_while_capturing()) return error;
  return leave(allocate_pinned(current_device(), bytes, out));
}

cudaError_t cudaFreeHost(void* address) {
  PROPHET_ENTER_TO_GIVE_BACK();
  if (const cudaError_t error = not_while_capturing()) return error;
  if (!address) return told;
  wait_for_all();
  const cudaError_t error = release_pinned(address);
  return leave(told ? told : error);
}

cudaError_t cudaHostRegister(void* address, size_t bytes, unsigned) {
  PROPHET_ENTER();
  if (const cudaError_t error = not_while_capturing()) return error;
  return leave(register_pinned(current_device(), address, bytes));
}

cudaError_t cudaHostUnregister(void* address) {
  PROPHET_ENTER_TO_GIVE_BACK();
  if (const cudaError_t error = not_while_capturing()) return error;
  wait_for_all();
  const cudaError_t error = unregister_pinned(address);
  return leave(told ? told : error);
}

// One address for host and device, as with unified addressing.
cudaError_t cudaHostGetDevicePointer(void** out, void* address, unsigned) {
  PROPHET_ENTER();
  if (location_of(address, 1).kind != cudaMemoryTypeHost) return leave(cudaErrorInvalidValue);
  *out = address;
  return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* out, const void* address) {
  PROPHET_ENTER();
  const Location place = location_of(address, 1);
  std::memset(out, 0, sizeof(*out));
  out->type = place.kind;
  out->device = place.device;
  if (place.mappable) out->devicePointer = const_cast<void*>(address);
  if (place.kind == cudaMemoryTypeHost) out->hostPointer = const_cast<void*>(address);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  PROPHET_ENTER();
  return leave(copy(to, from, bytes, kind, stream));
}

cudaError_t cudaMemsetAsync(void* address, int byte, size_t bytes, cudaStream_t handle) {
  PROPHET_ENTER();
  const auto stream = stream_of(handle);
  if (!stream) return leave(cudaErrorInvalidResourceHandle);
  const Location place = location_of(address, bytes);
  if (!place.mappable || !place.whole) return leave(cudaErrorInvalidValue);
  stream->push([=, to = place.access] {
    if (!device_lost()) std::memset(to, byte, bytes);
  });
  return cudaSuccess;
}

}  // extern "C"
