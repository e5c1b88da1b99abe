// Whether this library holds machine code for a device: ask CUDA for the attributes of one kernel.
#pragma once

namespace prophet {

// The address of a kernel that is built for the same architectures as all others.
const void* kernel_image();

}  // namespace prophet
