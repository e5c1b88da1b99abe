// Experts in int8 and int4, dequantised in registers.
#include "kernels/expert_ffn_cuda.cuh"

namespace prophet {

int launch_quantised_matrices(const FfnPass& p, CudaWeights type, int most_groups, void* stream) {
  return type == CudaWeights::int8 ? launch_matrices<CudaWeights::int8>(p, most_groups, stream)
                                   : launch_matrices<CudaWeights::int4>(p, most_groups, stream);
}

}  // namespace prophet
