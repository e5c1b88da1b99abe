// What a test may ask of the emulated library, and change: through the table that it exports as
// `prophet_emulation`. Nothing of this exists on a device.
#pragma once

#include <cstdint>

namespace prophet {

struct EmulationControl {
  std::uint32_t version;  // 1
  std::uint32_t size;     // sizeof(EmulationControl)

  // The end of a name in settings.h, such as ("FAIL", "cudaMalloc:2=2"). 0: no such name.
  int (*set)(const char* name, const char* value);
  // From now on every call returns the code of cudaError_t.
  void (*lose_device)(int code);
  // As after a new start of the process: counts at 0, no device lost. Settings stay.
  void (*revive)();

  // Calls by CUDA's name since the last revive, kernels as "cudaLaunchKernel"; "" counts all.
  std::uint64_t (*calls)(const char* name);
  // What was made and not given back: "device" or "pinned" memory, "stream", "event", "graph".
  std::uint64_t (*live)(const char* what);
  // 1: kernels could read all these bytes.
  int (*reachable)(const void* address, std::uint64_t bytes);
};

}  // namespace prophet

extern "C" const prophet::EmulationControl* prophet_emulation();
