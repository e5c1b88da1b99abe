// The table that the library exports.
#include "kernels/launchers_cuda.h"

extern "C" __attribute__((visibility("default"))) const prophet::CudaKernels*
prophet_cuda_kernels() {
  using namespace prophet;
  static const CudaKernels table = {
      .version = kCudaKernelsVersion,
      .size = sizeof(CudaKernels),
      .expert_ffn_scratch_bytes = cuda_expert_ffn_scratch_bytes,
      .expert_ffn = cuda_expert_ffn,
      .top_k = cuda_top_k,
      .dequantise = cuda_dequantise,
      .predict = cuda_predict,
      .route = cuda_route,
      .seal = cuda_seal,
  };
  return &table;
}
