// Activation functions over vectors, in float32. Internal to this room.
#pragma once

#include <cstddef>

#include "kernels/expert_ffn.h"

namespace prophet {

// up[i] = act(gate[i]) * up[i] for i < n; with gate null, up[i] = act(up[i]).
void activate(Activation activation, const float* gate, float* up, std::size_t n);

}  // namespace prophet
