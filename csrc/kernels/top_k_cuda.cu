// A router's choice: a warp per token, all its logits in registers.
#include "kernels/launchers_cuda.h"
#include "kernels/weights_cuda.cuh"

namespace prophet {
namespace {

constexpr int kBlock = 128;
constexpr float kLeast = -INFINITY;

// Whether (a, i) comes before (b, j): the larger logit, of equals the lower id.
__device__ __forceinline__ bool before(float a, int i, float b, int j) {
  return a > b || (a == b && i < j);
}

// Logit j of lane l is that of expert l + 32 * j; beyond the last expert, and once taken, its id is
// `taken`, which is behind everything.
template <int kEach>
__global__ void __launch_bounds__(kBlock) top_k(CudaTopKCall c) {
  const int token =
      static_cast<int>(blockIdx.x) * (kBlock / kWarp) + static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (token >= c.tokens) return;
  constexpr int kTaken = 1 << 30;
  float logit[kEach];
  unsigned left = 0;  // bit j: logit j can still be chosen
  float most = kLeast;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int expert = lane + kWarp * j;
    logit[j] = kLeast;
    if (expert < c.experts) {
      left |= 1u << j;
      const float value =
          load_as(c.logits_type, c.logits, static_cast<long long>(token) * c.experts + expert);
      if (value == value) logit[j] = value;  // NaN is as low as can be
    }
    most = fmaxf(most, logit[j]);
  }
#pragma unroll
  for (int by = kWarp / 2; by > 0; by /= 2) {
    most = fmaxf(most, __shfl_xor_sync(kWholeWarp, most, by));
  }
  float all = 0.0f;  // of the softmax
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    if (lane + kWarp * j < c.experts) all += expf(logit[j] - most);
  }
  all = warp_sum(all);

  float mine = 0.0f, chosen_sum = 0.0f;  // lane k keeps the weight of choice k
  for (int k = 0; k < c.top_k; ++k) {
    float best = kLeast;
    int id = kTaken;
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      if ((left >> j & 1) && before(logit[j], lane + kWarp * j, best, id)) {
        best = logit[j];
        id = lane + kWarp * j;
      }
    }
#pragma unroll
    for (int by = kWarp / 2; by > 0; by /= 2) {
      const float other = __shfl_xor_sync(kWholeWarp, best, by);
      const int other_id = __shfl_xor_sync(kWholeWarp, id, by);
      if (before(other, other_id, best, id)) {
        best = other;
        id = other_id;
      }
    }
    if (id % kWarp == lane) left &= ~(1u << (id / kWarp));
    const float weight = c.sigmoid ? 1.0f / (1.0f + expf(-best)) : expf(best - most) / all;
    chosen_sum += weight;
    if (lane == k) {
      mine = weight;
      c.ids[static_cast<long long>(token) * c.top_k + k] = id;
      if (c.table != nullptr && (c.table[id].up == nullptr || c.table[id].down == nullptr)) {
        atomicExch(&c.missing[id], 1);
        atomicAdd(c.missed, 1);
      }
    }
  }
  if (lane < c.top_k) {
    c.weights[static_cast<long long>(token) * c.top_k + lane] =
        c.normalise ? mine / chosen_sum : mine;
  }
}

}  // namespace

int cuda_top_k(const CudaTopKCall* call, void* stream) {
  const CudaTopKCall& c = *call;
  if (c.tokens < 1 || c.top_k < 1 || c.top_k > kCudaTopK || c.experts < c.top_k ||
      c.experts > kCudaExperts || c.logits_type > 2) {
    return kInvalidValue;
  }
  const int each = (c.experts + kWarp - 1) / kWarp;
  const auto kernel = each <= 1    ? top_k<1>
                      : each <= 4  ? top_k<4>
                      : each <= 8  ? top_k<8>
                      : each <= 16 ? top_k<16>
                                   : top_k<32>;
  const dim3 grid((c.tokens + kBlock / kWarp - 1) / (kBlock / kWarp));
  return PROPHET_LAUNCH(kernel, grid, dim3(kBlock), 0, stream, c);
}

}  // namespace prophet
