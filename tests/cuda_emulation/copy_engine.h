// The two copy engines of a device, one for each direction: latency, bandwidth, and the most urgent
// stream first. A copy that has begun runs to its end, as on a device.
#pragma once

#include <cstddef>

namespace prophet::emulation {

enum class Direction { to_device, to_host };

// Copies on the calling thread (a stream's) when the engine is free. The bytes are read and written
// at the end of the modelled time: a source that changes too soon, or a reader that did not wait,
// sees the wrong ones. priority 0 is the most urgent. `share` of the bandwidth.
void transfer(int device, Direction direction, int priority, double share, char* to,
              const char* from, std::size_t bytes);

}  // namespace prophet::emulation
