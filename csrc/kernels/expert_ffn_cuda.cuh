// The feed-forward network of experts on a device, over one type of weights.
//
//   prepare   widens x to float32 and groups the pairs (token, place in its top-k) by expert
//   gate_up   h[pair] = act(gate . x, up . x); a warp per row and expert, for all tokens of the
//   expert down      one token: out = sum over k of weight[k] * (down . h[k]), a warp per column of
//   out
//             several: part[pair] = down . h[pair], a warp per row and expert, and then
//   combine   out = sum over k of weight[pair] * part[pair]
//
// So an expert's weights are read once for all its tokens (from memory; four tokens at a time from
// registers), no sum depends on which other tokens there are, and nothing is added by atomics.
#pragma once

#include "kernels/weights_cuda.cuh"

namespace prophet {

constexpr int kFfnBlock = 256;               // threads
constexpr int kFfnRows = kFfnBlock / kWarp;  // rows of a matrix that a block takes
// Tokens of an expert that share a load of its weights, and blocks that must fit beside each other.
__host__ __device__ constexpr int ffn_together(CudaWeights type) {
  return is_quantised(type) ? 2 : 4;
}
__host__ __device__ constexpr int ffn_blocks(CudaWeights type, int tokens) {
  return tokens == 1 && !is_quantised(type) ? 3 : 2;
}
constexpr int kFfnPairs = kCudaFfnTokens * kCudaTopK;

// One pass over at most kCudaFfnTokens tokens, as kernels see it.
struct FfnPass {
  int tokens, top_k, experts, hidden, inter, group;
  std::uint8_t io, routing_type, activation, has_gate;
  const void* table;
  const void* x;
  const std::int64_t* ids;
  const void* routing;
  void* out;
  // Scratch. Rows are padded(hidden) or padded(inter) floats.
  float* wide;         // [tokens] x
  float* h;            // [pairs]
  float* parts;        // [pairs], several tokens only
  float* pair_weight;  // [pairs], 0: adds nothing
  int* groups;         // [1] experts that have pairs
  int* group_expert;   // [pairs]
  int* group_first;    // [pairs + 1], in group_pairs
  int* group_pairs;    // [pairs]
};

// Where matrices of expert `id` are; null if it is not here.
template <CudaWeights W>
struct ExpertTable;

template <typename Entry>
struct TableOf {
  __device__ __forceinline__ static const Entry& entry(const FfnPass& p, int id) {
    return static_cast<const Entry*>(p.table)[id];
  }
};
template <CudaWeights W>
requires(!is_quantised(W)) struct ExpertTable<W> : TableOf<CudaExpert> {
  using TableOf<CudaExpert>::entry;
  __device__ __forceinline__ static const void* gate(const FfnPass& p, int id) {
    return entry(p, id).gate;
  }
  __device__ __forceinline__ static const void* up(const FfnPass& p, int id) {
    return entry(p, id).up;
  }
  __device__ __forceinline__ static const void* down(const FfnPass& p, int id) {
    return entry(p, id).down;
  }
};
template <CudaWeights W>
requires(is_quantised(W)) struct ExpertTable<W> : TableOf<CudaQuantisedExpert> {
  using TableOf<CudaQuantisedExpert>::entry;
  __device__ __forceinline__ static const void* gate(const FfnPass& p, int id) {
    return &entry(p, id).gate;
  }
  __device__ __forceinline__ static const void* up(const FfnPass& p, int id) {
    return &entry(p, id).up;
  }
  __device__ __forceinline__ static const void* down(const FfnPass& p, int id) {
    return &entry(p, id).down;
  }
};

// As csrc/kernels/activation.cc; products and sums are spelled out so that all compilers round
// alike.
__device__ __forceinline__ float activate(std::uint8_t kind, float g) {
  switch (kind) {
    case 0:  // silu
      return g / (1.0f + expf(-g));
    case 1:  // gelu, exact
      return 0.5f * g * (1.0f + erff(g * 0.70710678118654752f));
    case 2: {  // gelu, tanh
      const float cube = fmaf(0.044715f * g * g, g, g);
      return 0.5f * g * (1.0f + tanhf(0.79788456080286536f * cube));
    }
    case 3:
      return fmaxf(g, 0.0f);
    default:
      return fmaxf(g, 0.0f) * fmaxf(g, 0.0f);
  }
}

// The row of this warp.
__device__ __forceinline__ int warp_row() {
  return static_cast<int>(blockIdx.x) * kFfnRows + static_cast<int>(threadIdx.x) / kWarp;
}

template <CudaWeights W, int T>
__global__ void __launch_bounds__(kFfnBlock, ffn_blocks(W, T)) gate_up(FfnPass p) {
  const int group = static_cast<int>(blockIdx.y), row = warp_row(), stride = padded(p.inter);
  if (group >= *p.groups || row >= stride) return;
  const bool lane0 = threadIdx.x % kWarp == 0;
  const int first = p.group_first[group], last = p.group_first[group + 1];
  if (row >= p.inter) {  // the padding that `down` reads
    for (int i = first; lane0 && i < last; ++i) {
      p.h[static_cast<long long>(p.group_pairs[i]) * stride + row] = 0.0f;
    }
    return;
  }
  const int expert = p.group_expert[group];
  const WeightRow up = row_of<W>(ExpertTable<W>::up(p, expert), row, p.hidden, p.group);
  const WeightRow gate =
      p.has_gate ? row_of<W>(ExpertTable<W>::gate(p, expert), row, p.hidden, p.group) : up;
  for (int begin = first; begin < last; begin += T) {
    const float* x[T];
#pragma unroll
    for (int t = 0; t < T; ++t) {
      const int pair = p.group_pairs[min(begin + t, last - 1)];
      x[t] = p.wide + static_cast<long long>(pair / p.top_k) * padded(p.hidden);
    }
    float u[T], g[T];
    dot_row<W, T>(up, p.hidden, p.group, x, u);
    if (p.has_gate) dot_row<W, T>(gate, p.hidden, p.group, x, g);
#pragma unroll
    for (int t = 0; t < T; ++t) {
      if (!lane0 || begin + t >= last) continue;
      const int pair = p.group_pairs[begin + t];
      p.h[static_cast<long long>(pair) * stride + row] =
          p.has_gate ? activate(p.activation, g[t]) * u[t] : activate(p.activation, u[t]);
    }
  }
}

// One token: pairs are its top-k.
template <CudaWeights W>
__global__ void __launch_bounds__(kFfnBlock, ffn_blocks(W, 1)) down_of_one(FfnPass p) {
  const int row = warp_row();
  if (row >= p.hidden) return;
  float sum = 0.0f;
  for (int k = 0; k < p.top_k; ++k) {
    const float weight = p.pair_weight[k];
    if (weight == 0.0f) continue;
    const int expert = static_cast<int>(p.ids[k]);
    const float* const x[1] = {p.h + static_cast<long long>(k) * padded(p.inter)};
    float part[1];
    dot_row<W, 1>(row_of<W>(ExpertTable<W>::down(p, expert), row, p.inter, p.group), p.inter,
                  p.group, x, part);
    sum = fmaf(weight, part[0], sum);
  }
  if (threadIdx.x % kWarp == 0) store_as(p.io, p.out, row, sum);
}

template <CudaWeights W>
__global__ void __launch_bounds__(kFfnBlock, 2) down_of_many(FfnPass p) {
  constexpr int T = ffn_together(W);
  const int group = static_cast<int>(blockIdx.y), row = warp_row();
  if (group >= *p.groups || row >= p.hidden) return;
  const int first = p.group_first[group], last = p.group_first[group + 1];
  const int expert = p.group_expert[group];
  const WeightRow down = row_of<W>(ExpertTable<W>::down(p, expert), row, p.inter, p.group);
  for (int begin = first; begin < last; begin += T) {
    const float* x[T];
#pragma unroll
    for (int t = 0; t < T; ++t) {
      const long long pair = p.group_pairs[min(begin + t, last - 1)];
      x[t] = p.h + pair * padded(p.inter);
    }
    float part[T];
    dot_row<W, T>(down, p.inter, p.group, x, part);
#pragma unroll
    for (int t = 0; t < T; ++t) {
      if (threadIdx.x % kWarp != 0 || begin + t >= last) continue;
      const long long pair = p.group_pairs[begin + t];
      p.parts[pair * padded(p.hidden) + row] = part[t];
    }
  }
}

// Launches gate_up and down; `many` also leaves the parts to combine.
template <CudaWeights W>
int launch_matrices(const FfnPass& p, int most_groups, void* stream) {
  const dim3 block(kFfnBlock);
  const dim3 ups((padded(p.inter) + kFfnRows - 1) / kFfnRows, most_groups);
  const unsigned downs = (p.hidden + kFfnRows - 1) / kFfnRows;
  const auto up = p.tokens == 1 ? gate_up<W, 1> : gate_up<W, ffn_together(W)>;
  const auto down = p.tokens == 1 ? down_of_one<W> : down_of_many<W>;
  const int code = PROPHET_LAUNCH(up, ups, block, 0, stream, p);
  if (code != 0) return code;
  return PROPHET_LAUNCH(down, p.tokens == 1 ? dim3(downs) : dim3(downs, most_groups), block, 0,
                        stream, p);
}

// Instantiated in expert_ffn_cuda.cu and expert_ffn_quantised_cuda.cu.
int launch_float_matrices(const FfnPass& p, CudaWeights type, int most_groups, void* stream);
int launch_quantised_matrices(const FfnPass& p, CudaWeights type, int most_groups, void* stream);

}  // namespace prophet
