// The predictor kernels of each instruction set; predictor_kernels() chooses. Internal to this
// room.
#pragma once

#include "kernels/predictor_math.h"

namespace prophet {

extern const PredictorKernels kPortablePredictorKernels;
#if defined(__x86_64__)
extern const PredictorKernels kAvx2PredictorKernels;
extern const PredictorKernels kAvx512PredictorKernels;
#endif

}  // namespace prophet
