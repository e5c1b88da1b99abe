#include "kernels/expert_ffn_cuda.cuh"
#include "kernels/launchers_cuda.h"

namespace prophet {
namespace {

// Expert of a pair that adds something, else -1.
__device__ __forceinline__ int expert_of(const FfnPass& p, bool quantised, int pair, float weight) {
  const std::int64_t id = p.ids[pair];
  if (id < 0 || id >= p.experts || weight == 0.0f) return -1;
  const void *up, *down;
  if (quantised) {
    const auto& e = static_cast<const CudaQuantisedExpert*>(p.table)[id];
    up = e.up.values;
    down = e.down.values;
  } else {
    const auto& e = static_cast<const CudaExpert*>(p.table)[id];
    up = e.up;
    down = e.down;
  }
  return up == nullptr || down == nullptr ? -1 : static_cast<int>(id);
}

// Block 0: the pairs by expert, experts rising. Which pair of an expert comes first is left open:
// no result depends on it.
__device__ __forceinline__ void group_pairs(const FfnPass& p, bool quantised) {
  PROPHET_SHARED(int, expert, kFfnPairs);
  PROPHET_SHARED(int, next, kCudaExperts);  // pairs of an expert, then where the next one goes
  const int pairs = p.tokens * p.top_k;
  for (int e = threadIdx.x; e < p.experts; e += kFfnBlock) next[e] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < pairs; i += kFfnBlock) {
    const float weight = load_as(p.routing_type, p.routing, i);
    expert[i] = expert_of(p, quantised, i, weight);
    p.pair_weight[i] = expert[i] < 0 ? 0.0f : weight;
    if (expert[i] >= 0) atomicAdd(&next[expert[i]], 1);
  }
  __syncthreads();
  if (threadIdx.x < kWarp) {
    const int lane = static_cast<int>(threadIdx.x);
    int groups = 0, placed = 0;
    for (int begin = 0; begin < p.experts; begin += kWarp) {
      const int count = begin + lane < p.experts ? next[begin + lane] : 0;
      int upto = count;  // of the lanes up to this one
      for (int by = 1; by < kWarp; by *= 2) {
        const int other = __shfl_up_sync(kWholeWarp, upto, by);
        if (lane >= by) upto += other;
      }
      const unsigned busy = __ballot_sync(kWholeWarp, count > 0);
      const int group = groups + __popc(busy & ((1u << lane) - 1));
      if (count > 0) {
        p.group_expert[group] = begin + lane;
        p.group_first[group] = placed + upto - count;
        next[begin + lane] = placed + upto - count;
      }
      groups += __popc(busy);
      placed += __shfl_sync(kWholeWarp, upto, kWarp - 1);
    }
    if (lane == 0) {
      *p.groups = groups;
      p.group_first[groups] = placed;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < pairs; i += kFfnBlock) {
    if (expert[i] >= 0) p.group_pairs[atomicAdd(&next[expert[i]], 1)] = i;
  }
}

__global__ void __launch_bounds__(kFfnBlock) prepare(FfnPass p, bool quantised) {
  if (blockIdx.x == 0) {
    group_pairs(p, quantised);
    return;
  }
  const long long token = blockIdx.x - 1;
  const int stride = padded(p.hidden);
  for (int i = threadIdx.x; i < stride; i += kFfnBlock) {
    p.wide[token * stride + i] = i < p.hidden ? load_as(p.io, p.x, token * p.hidden + i) : 0.0f;
  }
}

__global__ void __launch_bounds__(kFfnBlock) combine(FfnPass p) {
  const long long token = blockIdx.y;
  const int column = static_cast<int>(blockIdx.x * kFfnBlock + threadIdx.x);
  if (column >= p.hidden) return;
  float sum = 0.0f;
  for (int k = 0; k < p.top_k; ++k) {
    const long long pair = token * p.top_k + k;
    const float weight = p.pair_weight[pair];
    if (weight != 0.0f) sum = fmaf(weight, p.parts[pair * padded(p.hidden) + column], sum);
  }
  store_as(p.io, p.out, token * p.hidden + column, sum);
}

bool possible(const CudaFfnCall& c) {
  const bool quantised = is_quantised(c.weights);
  return c.tokens >= 1 && c.top_k >= 1 && c.top_k <= kCudaTopK && c.experts >= 1 &&
         c.experts <= kCudaExperts && c.hidden >= 1 && c.inter >= 1 &&
         c.weights <= CudaWeights::int4 && c.io <= 2 && c.routing_type <= 2 && c.activation <= 4 &&
         (!quantised || (c.group >= 32 && c.group % 32 == 0));
}

// Hands out scratch in pieces of whole 256 bytes; from null it only counts.
class Carver {
 public:
  explicit Carver(void* first) : first_(static_cast<unsigned char*>(first)) {}
  template <typename T>
  T* take(std::size_t count) {
    unsigned char* const at = first_ == nullptr ? nullptr : first_ + used_;
    used_ += (count * sizeof(T) + 255) / 256 * 256;
    return reinterpret_cast<T*>(at);
  }
  std::size_t used() const { return used_; }

 private:
  unsigned char* const first_;
  std::size_t used_ = 0;
};

FfnPass lay_out(const CudaFfnCall& c, int tokens, Carver& scratch) {
  FfnPass p{};
  p.tokens = tokens;
  p.top_k = c.top_k;
  p.experts = c.experts;
  p.hidden = c.hidden;
  p.inter = c.inter;
  p.group = c.group;
  p.io = c.io;
  p.routing_type = c.routing_type;
  p.activation = c.activation;
  p.has_gate = c.has_gate;
  p.table = c.table;
  const std::size_t pairs = std::size_t(tokens) * std::size_t(c.top_k);
  p.wide = scratch.take<float>(std::size_t(tokens) * padded(c.hidden));
  p.h = scratch.take<float>(pairs * padded(c.inter));
  p.parts = tokens == 1 ? nullptr : scratch.take<float>(pairs * padded(c.hidden));
  p.pair_weight = scratch.take<float>(pairs);
  p.groups = scratch.take<int>(1);
  p.group_expert = scratch.take<int>(pairs);
  p.group_first = scratch.take<int>(pairs + 1);
  p.group_pairs = scratch.take<int>(pairs);
  return p;
}

int run_pass(const FfnPass& p, CudaWeights type, void* stream) {
  const dim3 block(kFfnBlock);
  const bool quantised = is_quantised(type);
  int code = PROPHET_LAUNCH(prepare, dim3(1 + p.tokens), block, 0, stream, p, quantised);
  if (code != 0) return code;
  const int pairs = p.tokens * p.top_k, most_groups = pairs < p.experts ? pairs : p.experts;
  code = quantised ? launch_quantised_matrices(p, type, most_groups, stream)
                   : launch_float_matrices(p, type, most_groups, stream);
  if (code != 0 || p.tokens == 1) return code;
  const dim3 grid((p.hidden + kFfnBlock - 1) / kFfnBlock, p.tokens);
  return PROPHET_LAUNCH(combine, grid, block, 0, stream, p);
}

}  // namespace

int launch_float_matrices(const FfnPass& p, CudaWeights type, int most_groups, void* stream) {
  switch (type) {
    case CudaWeights::f32:
      return launch_matrices<CudaWeights::f32>(p, most_groups, stream);
    case CudaWeights::f16:
      return launch_matrices<CudaWeights::f16>(p, most_groups, stream);
    default:
      return launch_matrices<CudaWeights::bf16>(p, most_groups, stream);
  }
}

std::size_t cuda_expert_ffn_scratch_bytes(const CudaFfnCall* call) {
  if (!possible(*call)) return 0;
  Carver count(nullptr);
  lay_out(*call, call->tokens < kCudaFfnTokens ? call->tokens : kCudaFfnTokens, count);
  return count.used();
}

int cuda_expert_ffn(const CudaFfnCall* call, void* stream) {
  const CudaFfnCall& c = *call;
  if (!possible(c) || c.scratch_bytes < cuda_expert_ffn_scratch_bytes(call)) return kInvalidValue;
  const std::size_t routing_size = c.routing_type == 0 ? 4 : 2, io_size = c.io == 0 ? 4 : 2;
  for (int first = 0; first < c.tokens; first += kCudaFfnTokens) {
    const int left = c.tokens - first;
    Carver scratch(c.scratch);
    FfnPass p = lay_out(c, left < kCudaFfnTokens ? left : kCudaFfnTokens, scratch);
    const std::size_t pair = std::size_t(first) * std::size_t(c.top_k);
    const std::size_t at = std::size_t(first) * std::size_t(c.hidden) * io_size;
    p.x = static_cast<const unsigned char*>(c.x) + at;
    p.out = static_cast<unsigned char*>(c.out) + at;
    p.ids = c.ids + pair;
    p.routing = static_cast<const unsigned char*>(c.routing) + pair * routing_size;
    const int code = run_pass(p, c.weights, stream);
    if (code != 0) return code;
  }
  return 0;
}

}  // namespace prophet
