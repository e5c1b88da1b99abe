// How fast bytes travel between the host and a device: for `prophet doctor` and for benchmarks,
// which print what they reach as a fraction of this.
#pragma once

#include <cstddef>

#include "device/cuda/cuda_library.h"

namespace prophet {

struct CudaBandwidth {
  double to_device = 0, to_host = 0;            // bytes/s, page-locked memory, one direction
  double both_to_device = 0, both_to_host = 0;  // both directions at once
  double pageable_to_device = 0;                // what staging costs
  bool registers = false;  // existing memory can be page-locked (register_host)
};

// Each of the four for about `seconds` of wall time, in chunks; takes two page-locked buffers and
// two on the device of one chunk each. Throws DeviceError, also when memory cannot be had.
CudaBandwidth cuda_bandwidth(const CudaLibrary& library, double seconds,
                             std::size_t chunk_bytes = std::size_t{8} << 20);

}  // namespace prophet
