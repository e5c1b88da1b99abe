// What the table of cuda_kernels.h is made of.
#pragma once

#include "kernels/cuda_kernels.h"

namespace prophet {

constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue

std::size_t cuda_expert_ffn_scratch_bytes(const CudaFfnCall* call);
int cuda_expert_ffn(const CudaFfnCall* call, void* stream);
int cuda_top_k(const CudaTopKCall* call, void* stream);
int cuda_dequantise(const CudaDequantiseCall* call, void* stream);
int cuda_predict(const CudaBank* bank, const CudaBankState* state, const CudaBankCall* call,
                 void* stream);
int cuda_route(const HitPath* path, const HitPathCall* call, void* stream);
int cuda_seal(const HitPath* path, const HitPathCall* call, void* stream);

}  // namespace prophet
