// The forecaster's launch, first half: what the router has just said becomes the network's entry.
//
// Every block works it out for itself from the old state; see predictor_cuda.cu.
#pragma once

#include "kernels/weights_cuda.cuh"

namespace prophet {

constexpr int kPredictBlock = 256;
constexpr int kWarps = kPredictBlock / kWarp;
constexpr int kTile = kCudaBankTile;
constexpr int kParts = kCudaBankParts;
constexpr int kRowsThatMatter = 1024;  // older ones of a step have faded

struct PredictStep {
  CudaBank bank;
  CudaBankState state;
  CudaBankCall call;
};

// The block's shared memory, in floats.
struct PredictLayout {
  int gains, shares, entered, deep, middle, partial, total;
  __host__ __device__ explicit PredictLayout(const CudaBank& b) {
    gains = 0;                              // [decays, experts] what each gains
    shares = gains + b.decays * b.experts;  // [banks + 1, columns], recent blocks last
    shares = (shares + 3) / 4 * 4;
    entered = shares + (b.banks + 1) * b.columns;  // [columns]
    deep = entered + b.columns;                    // [columns] c of the specification
    middle = deep + b.columns;                     // [columns]
    partial = middle + b.columns;                  // [kPredictBlock, kTile]
    total = partial + kPredictBlock * kTile;
  }
};

__device__ __forceinline__ float sigmoid(float v) { return 1.0f / (1.0f + expf(-v)); }
__device__ __forceinline__ float hardswish(float v) {
  return v * fminf(fmaxf(v + 3.0f, 0.0f), 6.0f) * (1.0f / 6.0f);
}

// Eight float16 in sixteen bytes.
__device__ __forceinline__ void widen(uint4 raw, float (&out)[kTile]) {
  unpack<CudaWeights::f16>(raw.x, 0.0f, out);
  unpack<CudaWeights::f16>(raw.y, 0.0f, out + 2);
  unpack<CudaWeights::f16>(raw.z, 0.0f, out + 4);
  unpack<CudaWeights::f16>(raw.w, 0.0f, out + 6);
}
__device__ __forceinline__ uint4 load16(const std::uint16_t* at) {
  return __ldg(reinterpret_cast<const uint4*>(at));
}

// The sum over the block of one number per thread; `room` has kWarps floats nobody else uses.
__device__ __forceinline__ float block_sum(float value, float* room) {
  value = warp_sum(value);
  if (threadIdx.x % kWarp == 0) room[threadIdx.x / kWarp] = value;
  __syncthreads();
  float sum = 0.0f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += room[w];
  __syncthreads();
  return sum;
}

// Eight sums over the warp at once: lane l gets sum number l / 4.
__device__ __forceinline__ float sum_of_eight(const float (&v)[kTile]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float four[4], two[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float other = __shfl_xor_sync(kWholeWarp, lane & 16 ? v[i] : v[i + 4], 16);
    four[i] = (lane & 16 ? v[i + 4] : v[i]) + other;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float other = __shfl_xor_sync(kWholeWarp, lane & 8 ? four[i] : four[i + 2], 8);
    two[i] = (lane & 8 ? four[i + 2] : four[i]) + other;
  }
  const float other = __shfl_xor_sync(kWholeWarp, lane & 4 ? two[0] : two[1], 4);
  float one = (lane & 4 ? two[1] : two[0]) + other;
  one += __shfl_xor_sync(kWholeWarp, one, 2);
  one += __shfl_xor_sync(kWholeWarp, one, 1);
  return one;
}

// A tile times a vector in shared memory, by one warp: lane l gets output l / 4.
__device__ __forceinline__ float dot_tile(const std::uint16_t* tile, const float* x, int columns) {
  float sums[kTile] = {};
#pragma unroll 4
  for (int c = static_cast<int>(threadIdx.x) % kWarp; c < columns; c += kWarp) {
    float w[kTile];
    widen(load16(tile + static_cast<long long>(c) * kTile), w);
#pragma unroll
    for (int i = 0; i < kTile; ++i) sums[i] = fmaf(w[i], x[c], sums[i]);
  }
  return sum_of_eight(sums);
}

// The rows of the layer after this step, newest first: distinct ids and their gates. A warp per
// row.
__device__ __forceinline__ void read_rows(const PredictStep& s, int* ids, float* gates) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const CudaBankCall& call = s.call;
  for (int lag = static_cast<int>(threadIdx.x) / kWarp; lag < s.bank.lags; lag += kWarps) {
    const int at = lag * kCudaTopK + lane;
    if (lag >= call.tokens) {  // known already
      const long long old =
          (static_cast<long long>(call.layer) * s.bank.lags + lag - call.tokens) * kCudaTopK + lane;
      ids[at] = s.state.row_ids[old];
      gates[at] = s.state.row_gates[old];
      continue;
    }
    const long long pair = static_cast<long long>(call.tokens - 1 - lag) * call.top_k + lane;
    int id = -1;
    if (lane < call.top_k) {
      const std::int64_t given = call.ids[pair];
      if (given >= 0 && given < s.bank.experts) id = static_cast<int>(given);
    }
    bool again = false;
    for (int k = 0; k < call.top_k; ++k) {
      const int other = __shfl_sync(kWholeWarp, id, k);
      again = again || (k < lane && other == id);
    }
    if (again) id = -1;
    const float weight =
        id >= 0 && call.routing != nullptr ? load_as(call.routing_type, call.routing, pair) : 0.0f;
    const float sum = warp_sum(weight);
    ids[at] = id;
    gates[at] = id < 0                     ? 0.0f
                : sum > 0 && isfinite(sum) ? static_cast<float>(s.bank.top_k) * weight / sum
                                           : 1.0f;
  }
}

// gains[d, i]: what the averages of expert i gain by the step's rows, a thread per expert; `keep`:
// what is left of the old ones. Experts that gain anything are listed, rising.
__device__ __forceinline__ void gather_gains(const PredictStep& s, float* gains, float* keep,
                                             int* gained, int* gained_count) {
  const CudaBank& b = s.bank;
  const CudaBankCall& call = s.call;
  const int rows = min(call.tokens, kRowsThatMatter);
  if (threadIdx.x < static_cast<unsigned>(b.decays)) {
    float left = 1.0f;
    for (int depth = 0; depth < rows; ++depth) left *= b.decay[threadIdx.x];
    keep[threadIdx.x] = left;
  }
  for (int i = static_cast<int>(threadIdx.x); i < b.experts; i += kPredictBlock) {
    float gain[kParts] = {}, left[kParts];
#pragma unroll
    for (int d = 0; d < kParts; ++d) left[d] = 1.0f;
    bool any = false;
    for (int depth = 0; depth < rows; ++depth) {
      const std::int64_t* ids =
          call.ids + static_cast<long long>(call.tokens - 1 - depth) * call.top_k;
      bool chosen = false;
      for (int k = 0; k < call.top_k; ++k) chosen = chosen || ids[k] == i;
      any = any || chosen;
#pragma unroll
      for (int d = 0; d < kParts; ++d) {
        if (d >= b.decays) continue;
        if (chosen) gain[d] = fmaf(1.0f - b.decay[d], left[d], gain[d]);
        left[d] *= b.decay[d];
      }
    }
#pragma unroll
    for (int d = 0; d < kParts; ++d) {
      if (d < b.decays) gains[d * b.experts + i] = gain[d];
    }
    gained[i] = any ? 1 : 0;
  }
  __syncthreads();
  if (threadIdx.x < kWarp) {  // the list replaces the marks: it never gets ahead of them
    const int lane = static_cast<int>(threadIdx.x);
    int count = 0;
    for (int begin = 0; begin < b.experts; begin += kWarp) {
      const bool mark = begin + lane < b.experts && gained[begin + lane] != 0;
      const unsigned marks = __ballot_sync(kWholeWarp, mark);
      __syncwarp(kWholeWarp);
      if (mark) gained[count + __popc(marks & ((1u << lane) - 1))] = begin + lane;
      count += __popc(marks);
    }
    if (lane == 0) *gained_count = count;
  }
  __syncthreads();
}

__device__ __forceinline__ void add_entry(const std::uint16_t* entry, float scale,
                                          float (&sums)[kTile]) {
  float w[kTile];
  widen(load16(entry), w);
#pragma unroll
  for (int i = 0; i < kTile; ++i) sums[i] = fmaf(scale, w[i], sums[i]);
}

// The layer's averages in the network's terms, and the sum of its recent blocks: eight columns of
// one of them per thread and turn.
__device__ __forceinline__ void update_shares(const PredictStep& s, const float* gains,
                                              const float* keep, const int* gained,
                                              int gained_count, const int* ids, const float* gates,
                                              float* shares) {
  const CudaBank& b = s.bank;
  const int chunks = b.columns / kTile, blocks = b.banks + b.recents;
  const std::uint16_t* const entries =
      b.entries + static_cast<long long>(s.call.layer) * b.experts * blocks * b.columns;
  const float* const old =
      s.state.shares + static_cast<long long>(s.call.layer) * (b.banks + 1) * b.columns;
  for (int item = static_cast<int>(threadIdx.x); item < (b.banks + 1) * chunks;
       item += kPredictBlock) {
    const int which = item / chunks, column = item % chunks * kTile;
    const auto entry = [&](int expert, int block) {
      return entries + (static_cast<long long>(expert) * blocks + block) * b.columns + column;
    };
    float sums[kTile] = {};
    if (which < b.banks) {
      const int d = b.bank[which];
#pragma unroll
      for (int i = 0; i < kTile; ++i) sums[i] = keep[d] * old[which * b.columns + column + i];
      for (int g = 0; g < gained_count; ++g) {
        add_entry(entry(gained[g], which), gains[d * b.experts + gained[g]], sums);
      }
    } else {
      for (int block = 0; block < b.recents; ++block) {
        const int row = b.recent_lag[block] * kCudaTopK;
        for (int k = 0; k < kCudaTopK; ++k) {
          if (ids[row + k] < 0) continue;
          add_entry(entry(ids[row + k], b.banks + block),
                    b.recent_gate[block] ? gates[row + k] : 1.0f, sums);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kTile; ++i) shares[which * b.columns + column + i] = sums[i];
  }
}

// entered = the network's entry with the layer's new share. At layer 0 it is summed afresh.
__device__ __forceinline__ void update_entry(const PredictStep& s, const float* shares,
                                             float* share, float* entered) {
  const CudaBank& b = s.bank;
  const long long stride = static_cast<long long>(b.banks + 1) * b.columns;
  for (int c = static_cast<int>(threadIdx.x); c < b.columns; c += kPredictBlock) {
    float fresh = 0.0f;
    for (int which = 0; which <= b.banks; ++which) fresh += shares[which * b.columns + c];
    share[c] = fresh;
    const float* const kept = s.state.shares + static_cast<long long>(b.banks) * b.columns + c;
    if (s.call.layer > 0) {
      entered[c] = s.state.entered[c] + (fresh - kept[s.call.layer * stride]);
    } else {
      float sum = b.enter_bias[c] + fresh;
      for (int l = 1; l < b.layers; ++l) sum += kept[l * stride];
      entered[c] = sum;
    }
  }
}

// What the router's input adds to the entry: out[c], in a fixed order of rows.
__device__ __forceinline__ void read_hidden(const PredictStep& s, float* partial, float* out) {
  const CudaBank& b = s.bank;
  const int columns = b.columns, chunks = columns / kTile;
  const bool given = b.hidden > 0 && s.call.hidden != nullptr;
  float square = 0.0f;
  for (int h = static_cast<int>(threadIdx.x); given && h < b.hidden; h += kPredictBlock) {
    const float x = load_as(s.call.hidden_type, s.call.hidden, h);
    square = fmaf(x, x, square);
  }
  square = block_sum(square, partial);
  const float mean = square / static_cast<float>(max(b.hidden, 1));
  const bool usable = given && isfinite(square);
  const float scale = usable ? 1.0f / sqrtf(mean + 1e-6f) : 0.0f;
  // Threads share the rows of eight columns where there are threads to spare.
  const int splits = max(kPredictBlock / chunks, 1);
  const std::uint16_t* const rows =
      b.hidden_rows + static_cast<long long>(s.call.layer) * b.hidden * columns;
  for (int first = 0; first < chunks; first += kPredictBlock) {
    const int item = static_cast<int>(threadIdx.x);
    const int split = chunks <= kPredictBlock ? item / chunks : 0;
    const int chunk = first + (chunks <= kPredictBlock ? item % chunks : item);
    float sums[kTile] = {};
    if (usable && split < splits && chunk < chunks) {
      for (int h = split; h < b.hidden; h += splits) {
        add_entry(rows + static_cast<long long>(h) * columns + chunk * kTile,
                  scale * load_as(s.call.hidden_type, s.call.hidden, h), sums);
      }
    }
#pragma unroll
    for (int i = 0; i < kTile; ++i) partial[item * kTile + i] = sums[i];
    __syncthreads();
    if (split == 0 && chunk < chunks) {
#pragma unroll
      for (int i = 0; i < kTile; ++i) {
        float sum = 0.0f;
        for (int k = 0; k < splits; ++k) {
          sum += partial[((chunk - first) + k * chunks) * kTile + i];
        }
        out[chunk * kTile + i] = sum;
      }
    }
    __syncthreads();
  }
}

}  // namespace prophet
