// The learned forecaster's layer step in one launch; the arithmetic is specified in
// python/prophet_moe/predict/export.py and done on the CPU by predict/bank_predictor.cc.
//
// A block owns eight experts of the layer and of the layers ahead: their averages, heads and
// probabilities. What all of them need first (the row just chosen, the shares, the network's entry,
// its middle) every block works out for itself from the old state, which costs less than a second
// launch. The new shares, entry and rows are written by the block that finishes last: by then all
// have read the old ones.
#include "kernels/launchers_cuda.h"
#include "kernels/predictor_rows_cuda.cuh"

namespace prophet {
namespace {

constexpr int kSharedMost = 99 << 10;  // of the smallest architecture
constexpr float kLogShift = 0.004f;

// deep = the network's last layer but one. `hidden` is what read_hidden gave; it is used up.
__device__ __forceinline__ void run_network(const PredictStep& s, const float* entered,
                                            float* hidden, float* deep, float* room) {
  const CudaBank& b = s.bank;
  const int layer = s.call.layer, tid = static_cast<int>(threadIdx.x);
  float sum = 0.0f;
  for (int c = tid; c < b.rank; c += kPredictBlock) sum += entered[c] + hidden[c];
  const float mean = block_sum(sum, room) / static_cast<float>(b.rank);
  float square = 0.0f;
  for (int c = tid; c < b.rank; c += kPredictBlock) {
    const float away = entered[c] + hidden[c] - mean;
    square = fmaf(away, away, square);
  }
  const float variance = block_sum(square, room) / static_cast<float>(b.rank);
  const float scale = 1.0f / sqrtf(variance + 1e-5f);
  const long long at = static_cast<long long>(layer) * b.columns;
  for (int c = tid; c < b.columns; c += kPredictBlock) {
    const float y =
        fmaf((entered[c] + hidden[c] - mean) * scale, b.norm_gain[at + c], b.norm_bias[at + c]);
    deep[c] = c < b.rank ? hardswish(y) : 0.0f;
  }
  __syncthreads();
  if (!b.has_middle) return;
  const int lane = tid % kWarp;
  for (int tile = tid / kWarp; tile < b.columns / kTile; tile += kWarps) {
    const float dot =
        dot_tile(b.middle + static_cast<long long>(tile) * b.columns * kTile, deep, b.columns);
    if (lane % 4 == 0) hidden[tile * kTile + lane / 4] = dot;
  }
  __syncthreads();
  for (int c = tid; c < b.columns; c += kPredictBlock)
    deep[c] += hardswish(hidden[c] + b.mid_bias[c]);
  __syncthreads();
}

// dots[m] of the block's experts for every latent, then for every layer ahead.
__device__ __forceinline__ void read_outputs(const PredictStep& s, const float* deep, int ahead,
                                             float* dots) {
  const CudaBank& b = s.bank;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const long long matrix = static_cast<long long>(b.lanes) * b.columns;
  const long long tile = static_cast<long long>(blockIdx.x) * b.columns * kTile;
  for (int m = static_cast<int>(threadIdx.x) / kWarp; m < b.latents + ahead; m += kWarps) {
    const int f = m - b.latents;
    const std::uint16_t* const from =
        f < 0
            ? b.leave + (static_cast<long long>(s.call.layer) * b.latents + m) * matrix
            : b.ahead_rows + (static_cast<long long>(f) * b.layers + s.call.layer + 1 + f) * matrix;
    const float dot = dot_tile(from + tile, deep, b.columns);
    if (lane % 4 == 0) dots[m * kTile + lane / 4] = dot;
  }
}

// The logits of the block's experts, a thread per expert and head; the averages on the way.
__device__ __forceinline__ void run_heads(const PredictStep& s, const float* gains,
                                          const float* keep, const int* ids, const float* gates,
                                          const float* dots, float* logits, float* averages) {
  const CudaBank& b = s.bank;
  const int tid = static_cast<int>(threadIdx.x), first = static_cast<int>(blockIdx.x) * kTile;
  const long long layer = s.call.layer;
  for (int item = tid; item < b.decays * kTile; item += kPredictBlock) {
    const int d = item / kTile, i = first + item % kTile;
    float* const kept = s.state.averages + (layer * b.decays + d) * b.lanes + i;
    const float now = keep[d] * *kept + (i < b.experts ? gains[d * b.experts + i] : 0.0f);
    *kept = now;
    averages[item] = logf(now + kLogShift);
  }
  __syncthreads();
  for (int item = tid; item < b.heads * kTile; item += kPredictBlock) {
    const int h = item / kTile, lane = item % kTile, i = first + lane;
    float logit = b.own_bias[(layer * b.heads + h) * b.lanes + i];
    if (b.decays > 0) {
      const float* const weight = b.own_weight + (layer * b.heads + h) * (b.decays + 2);
      float gate = 0.0f, before = 0.0f;
      for (int k = 0; k < kCudaTopK; ++k) {
        if (ids[k] == i) gate = gates[k];
        if (ids[kCudaTopK + k] == i) before = 1.0f;
      }
      for (int d = 0; d < b.decays; ++d) logit = fmaf(weight[d], averages[d * kTile + lane], logit);
      logit = fmaf(weight[b.decays], gate, logit);
      logit = fmaf(weight[b.decays + 1], before, logit);
    }
    for (int m = 0; m < b.latents; ++m) {
      logit = fmaf(b.leave_mix[h * b.latents + m], dots[m * kTile + lane], logit);
    }
    logits[item] = logit;
  }
  __syncthreads();
  const int i = first + tid;
  if (tid >= kTile || i >= b.experts) return;
  float gap = b.gap_weight[0];
  for (int h = 0; h < b.heads; ++h) {
    const float scale = b.next_scale[layer * b.heads + h];
    gap = fmaf(b.gap_weight[1 + h], sigmoid(-scale * logits[h * kTile + tid]), gap);
  }
  s.state.raw[layer * b.lanes + i] = logits[tid];
  s.call.gaps[i] = fmaxf(gap, 1.0f);
  if (s.call.next != nullptr) {
    s.call.next[i] = sigmoid(b.next_scale[layer * b.heads] * logits[tid]);
  }
}

__device__ __forceinline__ void look_ahead(const PredictStep& s, int ahead, const int* ids,
                                           const float* dots) {
  const CudaBank& b = s.bank;
  const int tid = static_cast<int>(threadIdx.x), first = static_cast<int>(blockIdx.x) * kTile;
  for (int item = tid; item < ahead * kTile; item += kPredictBlock) {
    const int f = item / kTile, i = first + item % kTile;
    if (i >= b.experts) continue;
    const long long j = s.call.layer + 1 + f, at = static_cast<long long>(f) * b.layers + j;
    float logit = fmaf(b.ahead_prior[at], s.state.raw[j * b.lanes + i],
                       b.ahead_bias[at * b.lanes + i] + dots[item]);
    for (int back = 0; back < b.pairs && back <= s.call.layer; ++back) {
      const long long row = static_cast<long long>(s.call.layer - back) * b.lags * kCudaTopK;
      const int* const chosen = back == 0 ? ids : s.state.row_ids + row;
      const long long of = static_cast<long long>(back) * b.ahead * b.layers + at;
      for (int k = 0; k < kCudaTopK; ++k) {
        if (chosen[k] < 0) continue;
        const std::uint16_t bits = b.pair[(of * b.experts + chosen[k]) * b.lanes + i];
        logit += __half2float(__ushort_as_half(bits));
      }
    }
    s.call.probabilities[static_cast<long long>(f) * b.experts + i] =
        sigmoid(b.ahead_scale[at] * logit);
  }
}

__global__ void __launch_bounds__(kPredictBlock, 1) predict(PredictStep s) {
  PROPHET_DYNAMIC_SHARED(float, shared);
  PROPHET_SHARED(int, gained, kCudaExperts);
  PROPHET_SHARED(int, ids, kParts* kCudaTopK);
  PROPHET_SHARED(float, gates, kParts* kCudaTopK);
  PROPHET_SHARED(float, dots, 2 * kParts * kTile);
  PROPHET_SHARED(float, logits, kParts* kTile);
  PROPHET_SHARED(float, averages, kParts* kTile);
  PROPHET_SHARED(float, keep, kParts);
  PROPHET_SHARED(int, counts, 2);
  const CudaBank& b = s.bank;
  const PredictLayout at(b);
  const int tid = static_cast<int>(threadIdx.x);
  const int ahead = min(b.ahead, b.layers - 1 - s.call.layer);
  float* const gains = shared + at.gains;
  float* const shares = shared + at.shares;
  float* const entered = shared + at.entered;
  float* const deep = shared + at.deep;
  float* const hidden = shared + at.middle;
  float* const partial = shared + at.partial;

  read_rows(s, ids, gates);
  gather_gains(s, gains, keep, gained, &counts[0]);
  update_shares(s, gains, keep, gained, counts[0], ids, gates, shares);
  __syncthreads();
  update_entry(s, shares, shares + b.banks * b.columns, entered);
  read_hidden(s, partial, hidden);
  run_network(s, entered, hidden, deep, partial);
  read_outputs(s, deep, ahead, dots);  // seen by others after the first barrier of run_heads
  run_heads(s, gains, keep, ids, gates, dots, logits, averages);
  look_ahead(s, ahead, ids, dots + b.latents * kTile);

  if (tid == 0) {  // barriers above say that the whole block has read what is about to change
    __threadfence();
    counts[1] = static_cast<int>(atomicAdd(s.state.arrived, 1u));
    __threadfence();
  }
  __syncthreads();
  if (counts[1] != static_cast<int>(gridDim.x) - 1) return;
  float* const new_shares =
      s.state.shares + static_cast<long long>(s.call.layer) * (b.banks + 1) * b.columns;
  for (int c = tid; c < (b.banks + 1) * b.columns; c += kPredictBlock) new_shares[c] = shares[c];
  for (int c = tid; c < b.columns; c += kPredictBlock) s.state.entered[c] = entered[c];
  const long long rows = static_cast<long long>(s.call.layer) * b.lags * kCudaTopK;
  for (int k = tid; k < b.lags * kCudaTopK; k += kPredictBlock) {
    s.state.row_ids[rows + k] = ids[k];
    s.state.row_gates[rows + k] = gates[k];
  }
  if (tid == 0) atomicExch(s.state.arrived, 0u);
}

bool few(int n, int least) { return n >= least && n <= kParts; }

bool possible(const CudaBank& b, const CudaBankCall& c) {
  return b.layers >= 1 && b.experts >= 1 && b.experts <= kCudaExperts && b.rank >= 1 &&
         b.columns >= b.rank && b.columns % kTile == 0 && b.lanes >= b.experts &&
         b.lanes % kTile == 0 && few(b.decays, 0) && few(b.banks, 0) && few(b.recents, 0) &&
         few(b.lags, 2) && few(b.heads, 1) && few(b.latents, 0) && few(b.ahead, 0) &&
         b.hidden >= 0 && c.layer >= 0 && c.layer < b.layers && c.tokens >= 1 && c.top_k >= 0 &&
         c.top_k <= kCudaTopK && c.routing_type <= 2 && c.hidden_type <= 2;
}

}  // namespace

int cuda_predict(const CudaBank* bank, const CudaBankState* state, const CudaBankCall* call,
                 void* stream) {
  if (!possible(*bank, *call)) return kInvalidValue;
  const std::size_t bytes = std::size_t(PredictLayout(*bank).total) * sizeof(float);
  if (bytes > kSharedMost - (12 << 10)) return kInvalidValue;
  if (bytes > (36 << 10)) {
    const int code = PROPHET_ALLOW_SHARED(predict, bytes);
    if (code != 0) return code;
  }
  return PROPHET_LAUNCH(predict, dim3(bank->lanes / kTile), dim3(kPredictBlock), bytes, stream,
                        PredictStep{*bank, *state, *call});
}

}  // namespace prophet
