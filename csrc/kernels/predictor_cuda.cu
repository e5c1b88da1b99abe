// The learned forecaster's layer step in one launch; the arithmetic is specified in
// python/prophet_moe/predict/export.py and done on the CPU by predict/bank_predictor.cc.
//
// A block owns eight experts of the layer and of the layers ahead: their averages, heads and
// probabilities. What all of them need first (the row just chosen, the shares, the network's entry,
// its middle) every block works out for itself from the old state, which costs less than a second
// launch. The new shares, entry and rows are written by the block that finishes last: by then all
// have read the old ones.
#include "kernels/launchers_cuda.h"
#include "kernels/weights_cuda.cuh"

namespace prophet {
namespace {

constexpr int kBlock = 256;
constexpr int kWarps = kBlock / kWarp;
constexpr int kTile = kCudaBankTile;
constexpr int kParts = kCudaBankParts;
constexpr int kRowsThatMatter = 1024;  // older ones of a step have faded
constexpr int kSharedMost = 99 << 10;  // of the smallest architecture
constexpr float kLogShift = 0.004f;

struct Step {
  CudaBank bank;
  CudaBankState state;
  CudaBankCall call;
};

// The block's shared memory, in floats.
struct Layout {
  int gains, shares, entered, deep, middle, partial, total;
  __host__ __device__ explicit Layout(const CudaBank& b) {
    gains = 0;                              // [decays, experts] what each gains
    shares = gains + b.decays * b.experts;  // [banks + 1, columns], recent blocks last
    shares = (shares + 3) / 4 * 4;
    entered = shares + (b.banks + 1) * b.columns;  // [columns]
    deep = entered + b.columns;                    // [columns] c of the specification
    middle = deep + b.columns;                     // [columns]
    partial = middle + b.columns;                  // [kBlock, kTile]
    total = partial + kBlock * kTile;
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
__device__ __forceinline__ void read_rows(const Step& s, int* ids, float* gates) {
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
__device__ __forceinline__ void gather_gains(const Step& s, float* gains, float* keep, int* gained,
                                             int* gained_count) {
  const CudaBank& b = s.bank;
  const CudaBankCall& call = s.call;
  const int rows = min(call.tokens, kRowsThatMatter);
  if (threadIdx.x < static_cast<unsigned>(b.decays)) {
    float left = 1.0f;
    for (int depth = 0; depth < rows; ++depth) left *= b.decay[threadIdx.x];
    keep[threadIdx.x] = left;
  }
  for (int i = static_cast<int>(threadIdx.x); i < b.experts; i += kBlock) {
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
__device__ __forceinline__ void update_shares(const Step& s, const float* gains, const float* keep,
                                              const int* gained, int gained_count, const int* ids,
                                              const float* gates, float* shares) {
  const CudaBank& b = s.bank;
  const int chunks = b.columns / kTile, blocks = b.banks + b.recents;
  const std::uint16_t* const entries =
      b.entries + static_cast<long long>(s.call.layer) * b.experts * blocks * b.columns;
  const float* const old =
      s.state.shares + static_cast<long long>(s.call.layer) * (b.banks + 1) * b.columns;
  for (int item = static_cast<int>(threadIdx.x); item < (b.banks + 1) * chunks; item += kBlock) {
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
__device__ __forceinline__ void update_entry(const Step& s, const float* shares, float* share,
                                             float* entered) {
  const CudaBank& b = s.bank;
  const long long stride = static_cast<long long>(b.banks + 1) * b.columns;
  for (int c = static_cast<int>(threadIdx.x); c < b.columns; c += kBlock) {
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
__device__ __forceinline__ void read_hidden(const Step& s, float* partial, float* out) {
  const CudaBank& b = s.bank;
  const int columns = b.columns, chunks = columns / kTile;
  const bool given = b.hidden > 0 && s.call.hidden != nullptr;
  float square = 0.0f;
  for (int h = static_cast<int>(threadIdx.x); given && h < b.hidden; h += kBlock) {
    const float x = load_as(s.call.hidden_type, s.call.hidden, h);
    square = fmaf(x, x, square);
  }
  square = block_sum(square, partial);
  const float mean = square / static_cast<float>(max(b.hidden, 1));
  const bool usable = given && isfinite(square);
  const float scale = usable ? 1.0f / sqrtf(mean + 1e-6f) : 0.0f;
  // Threads share the rows of eight columns where there are threads to spare.
  const int splits = max(kBlock / chunks, 1);
  const std::uint16_t* const rows =
      b.hidden_rows + static_cast<long long>(s.call.layer) * b.hidden * columns;
  for (int first = 0; first < chunks; first += kBlock) {
    const int item = static_cast<int>(threadIdx.x);
    const int split = chunks <= kBlock ? item / chunks : 0;
    const int chunk = first + (chunks <= kBlock ? item % chunks : item);
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

// deep = the network's last layer but one. `hidden` is what read_hidden gave; it is used up.
__device__ __forceinline__ void run_network(const Step& s, const float* entered, float* hidden,
                                            float* deep, float* room) {
  const CudaBank& b = s.bank;
  const int layer = s.call.layer, tid = static_cast<int>(threadIdx.x);
  float sum = 0.0f;
  for (int c = tid; c < b.rank; c += kBlock) sum += entered[c] + hidden[c];
  const float mean = block_sum(sum, room) / static_cast<float>(b.rank);
  float square = 0.0f;
  for (int c = tid; c < b.rank; c += kBlock) {
    const float away = entered[c] + hidden[c] - mean;
    square = fmaf(away, away, square);
  }
  const float variance = block_sum(square, room) / static_cast<float>(b.rank);
  const float scale = 1.0f / sqrtf(variance + 1e-5f);
  const long long at = static_cast<long long>(layer) * b.columns;
  for (int c = tid; c < b.columns; c += kBlock) {
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
  for (int c = tid; c < b.columns; c += kBlock) deep[c] += hardswish(hidden[c] + b.mid_bias[c]);
  __syncthreads();
}

// dots[m] of the block's experts for every latent, then for every layer ahead.
__device__ __forceinline__ void read_outputs(const Step& s, const float* deep, int ahead,
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
__device__ __forceinline__ void run_heads(const Step& s, const float* gains, const float* keep,
                                          const int* ids, const float* gates, const float* dots,
                                          float* logits, float* averages) {
  const CudaBank& b = s.bank;
  const int tid = static_cast<int>(threadIdx.x), first = static_cast<int>(blockIdx.x) * kTile;
  const long long layer = s.call.layer;
  for (int item = tid; item < b.decays * kTile; item += kBlock) {
    const int d = item / kTile, i = first + item % kTile;
    float* const kept = s.state.averages + (layer * b.decays + d) * b.lanes + i;
    const float now = keep[d] * *kept + (i < b.experts ? gains[d * b.experts + i] : 0.0f);
    *kept = now;
    averages[item] = logf(now + kLogShift);
  }
  __syncthreads();
  for (int item = tid; item < b.heads * kTile; item += kBlock) {
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

__device__ __forceinline__ void look_ahead(const Step& s, int ahead, const int* ids,
                                           const float* dots) {
  const CudaBank& b = s.bank;
  const int tid = static_cast<int>(threadIdx.x), first = static_cast<int>(blockIdx.x) * kTile;
  for (int item = tid; item < ahead * kTile; item += kBlock) {
    const int f = item / kTile, i = first + item % kTile;
    if (i >= b.experts) continue;
    const long long j = s.call.layer + 1 + f, at = static_cast<long long>(f) * b.layers + j;
    float logit = fmaf(b.ahead_prior[at], s.state.raw[j * b.lanes + i],
                       b.ahead_bias[at * b.lanes + i] + dots[item]);
    for (int k = 0; b.has_pair && k < kCudaTopK; ++k) {
      if (ids[k] < 0) continue;
      const std::uint16_t bits = b.pair[(at * b.experts + ids[k]) * b.lanes + i];
      logit += __half2float(__ushort_as_half(bits));
    }
    s.call.probabilities[static_cast<long long>(f) * b.experts + i] =
        sigmoid(b.ahead_scale[at] * logit);
  }
}

__global__ void __launch_bounds__(kBlock, 1) predict(Step s) {
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
  const Layout at(b);
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
  for (int c = tid; c < (b.banks + 1) * b.columns; c += kBlock) new_shares[c] = shares[c];
  for (int c = tid; c < b.columns; c += kBlock) s.state.entered[c] = entered[c];
  const long long rows = static_cast<long long>(s.call.layer) * b.lags * kCudaTopK;
  for (int k = tid; k < b.lags * kCudaTopK; k += kBlock) {
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
  const std::size_t bytes = std::size_t(Layout(*bank).total) * sizeof(float);
  if (bytes > kSharedMost - (12 << 10)) return kInvalidValue;
  if (bytes > (36 << 10)) {
    const int code = PROPHET_ALLOW_SHARED(predict, bytes);
    if (code != 0) return code;
  }
  return PROPHET_LAUNCH(predict, dim3(bank->lanes / kTile), dim3(kBlock), bytes, stream,
                        Step{*bank, *state, *call});
}

}  // namespace prophet
