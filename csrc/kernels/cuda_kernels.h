// The kernels of a CUDA device as Prophet uses them: one table of C functions, no CUDA header.
//
// The library that exports `prophet_cuda_api` (device/cuda/cuda_api.h) exports
// `prophet_cuda_kernels` too. Unless said otherwise pointers are device addresses, arrays are
// row-major and dense, and sums are float32. Every function queues work on `stream` and returns at
// once: 0, or the number of a cudaError_t (1, cudaErrorInvalidValue, when sizes cannot be). None
// waits for the device, allocates, or asks it anything, so all of them can be captured into a
// graph. What a call names must stay until the stream has passed it; the struct itself is read at
// once.
#pragma once

#include <cstddef>
#include <cstdint>

namespace prophet {

constexpr std::uint32_t kCudaKernelsVersion = 2;

// Element types: DType of core/types.h, plus float32-free ways to store weights.
// int8 and int4 are group-quantised along a row:  w = scale * (q - zero).
//   int8  values [rows, columns], q in -128 .. 127, zero 0 unless given
//   int4  values [rows, ceil(columns / 2)], the earlier column in the lower four bits, q in 0 ..
//   15,
//         zero 8 unless given
enum class CudaWeights : std::uint8_t { f32 = 0, f16 = 1, bf16 = 2, int8 = 3, int4 = 4 };

// One expert's matrices: gate, up [inter, hidden], down [hidden, inter]. Any byte address will do;
// where all three are multiples of 16 (and so are their rows) loads are twice as wide or more.
// up or down null: the expert is not here, and the call leaves it out.
struct CudaExpert {
  const void* gate;  // ignored without has_gate
  const void* up;
  const void* down;
};

// The same, quantised. Groups of `group` columns; the last of a row may be shorter.
struct CudaQuantised {
  const void* values;         // any byte address
  const void* scales;         // float16 [rows, groups], even address
  const std::uint8_t* zeros;  // [rows, groups]; null: 0 for int8, 8 for int4
};
struct CudaQuantisedExpert {
  CudaQuantised gate, up, down;
};

// out[t] = sum over k of routing[t, k] * expert(ids[t, k])(x[t]), k ascending, as in expert_ffn.h.
// Pairs whose id is not in 0 .. experts - 1, whose weight is zero or whose expert is not here add
// nothing. out[t] has the same bits whichever other tokens are in the call.
struct CudaFfnCall {
  std::int32_t tokens;   // >= 1; more than kCudaFfnTokens are taken in several passes
  std::int32_t top_k;    // 1 .. kCudaTopK
  std::int32_t experts;  // of the layer, 1 .. kCudaExperts
  std::int32_t hidden, inter;
  std::int32_t group;  // of int8 and int4: a multiple of 32; else ignored
  CudaWeights weights;
  std::uint8_t io;            // DType of x and out
  std::uint8_t routing_type;  // DType of routing
  std::uint8_t activation;    // Activation of expert_ffn.h
  std::uint8_t has_gate;      // 0: down . act(up . x)
  const void* table;          // [experts] CudaExpert, or CudaQuantisedExpert for int8 and int4
  const void* x;              // [tokens, hidden]
  const std::int64_t* ids;    // [tokens, top_k]
  const void* routing;        // [tokens, top_k]
  void* out;                  // [tokens, hidden]
  void* scratch;              // 256-aligned, at least expert_ffn_scratch_bytes(call)
  std::size_t scratch_bytes;
};
constexpr std::int32_t kCudaFfnTokens = 64;
constexpr std::int32_t kCudaTopK = 32;
constexpr std::int32_t kCudaExperts = 1024;

// The top_k largest logits of each token, largest first, equal ones by rising id; their weights;
// and which of them are not here. Logits that are NaN come last.
struct CudaTopKCall {
  std::int32_t tokens, experts, top_k;
  std::uint8_t logits_type;  // DType
  std::uint8_t sigmoid;      // weights are sigmoid(logit); 0: softmax over all experts
  std::uint8_t normalise;    // weights of a token are divided by their sum
  const void* logits;        // [tokens, experts]
  std::int64_t* ids;         // [tokens, top_k]
  float* weights;            // [tokens, top_k]
  const CudaExpert* table;   // [experts]; null: no question of what is here
  std::int32_t* missing;     // [experts]: 1 for each expert chosen and not here, else left alone
  std::int32_t* missed;      // [1]: incremented once per pair whose expert is not here
};

// out = the matrix in full, rows x columns.
struct CudaDequantiseCall {
  std::int32_t rows, columns, group;
  CudaWeights weights;    // int8 or int4
  std::uint8_t out_type;  // DType
  CudaQuantised matrix;
  void* out;  // aligned to its elements
};

// The learned forecaster (predict/bank_network.h) on the device. `columns` is its rank padded to a
// multiple of kCudaBankTile, `lanes` its experts padded likewise; padding is zero. Matrices lie in
// tiles of kCudaBankTile outputs: [outputs / tile, columns, tile] float16.
constexpr std::int32_t kCudaBankTile = 8;
constexpr std::int32_t kCudaBankParts =
    8;  // most decays, banks, recent blocks, lags, heads, latents, layers ahead

struct CudaBank {
  std::int32_t layers, experts, top_k, rank, columns, lanes;
  std::int32_t decays, banks, recents, lags, heads, latents, ahead, hidden;
  std::int32_t pairs;  // layers whose choices a forecast reads directly
  std::uint8_t has_middle;
  std::int32_t bank[kCudaBankParts];         // which decay each bank follows
  std::int32_t recent_lag[kCudaBankParts];   // < lags
  std::uint8_t recent_gate[kCudaBankParts];  // 1: times the gate
  float decay[kCudaBankParts];
  const std::uint16_t* entries;      // [layers, experts, banks + recents, columns]
  const std::uint16_t* hidden_rows;  // [layers, hidden, columns]
  const std::uint16_t* middle;       // tiles, columns outputs
  const std::uint16_t* leave;        // [layers, latents] of tiles, lanes outputs
  const std::uint16_t* ahead_rows;   // [ahead, layers] of tiles, lanes outputs
  const std::uint16_t* pair;         // [pairs, ahead, layers, experts, lanes]
  const float *enter_bias, *norm_gain, *norm_bias, *mid_bias;  // [columns], [layers, columns] twice
  const float *own_weight, *own_bias;   // [layers, heads, decays + 2], [layers, heads, lanes]
  const float *leave_mix, *next_scale;  // [heads, latents], [layers, heads]
  const float* gap_weight;              // [1 + heads], of the limit in force
  const float *ahead_bias, *ahead_prior,
      *ahead_scale;  // [ahead, layers, lanes], [ahead, layers] twice
};

// What it remembers; written by the call only. kCudaTopK places per row, unused ids are -1.
struct CudaBankState {
  float* averages;         // [layers, decays, lanes]
  float* shares;           // [layers, banks + 1, columns]
  float* raw;              // [layers, lanes]
  std::int32_t* row_ids;   // [layers, lags, kCudaTopK], newest first
  float* row_gates;        // the same
  float* entered;          // [columns]
  std::uint32_t* arrived;  // [1], zero
};

// One layer step: takes the router's choice in and forecasts, in one launch.
struct CudaBankCall {
  std::int32_t layer, tokens, top_k;  // top_k <= kCudaTopK
  std::uint8_t routing_type;          // DType
  std::uint8_t hidden_type;           // DType
  const std::int64_t* ids;            // [tokens, top_k]; those outside the layer are left out
  const void* routing;                // [tokens, top_k] or null: unknown
  const void* hidden;                 // [hidden], the router's input for the last token, or null
  float* gaps;                        // [experts] expected turns to the next use
  float* next;                        // [experts] P(used within the first head's turns), or null
  float* probabilities;               // [ahead, experts]: row f speaks of layer + 1 + f; rows of
                                      // layers past the last are left alone
};

struct HitPath;  // hit_path.h
struct HitPathCall;

struct CudaKernels {
  std::uint32_t version;  // kCudaKernelsVersion
  std::uint32_t size;     // sizeof(CudaKernels)

  // Reads the sizes of the call only; 0 when they cannot be.
  std::size_t (*expert_ffn_scratch_bytes)(const CudaFfnCall* call);
  int (*expert_ffn)(const CudaFfnCall* call, void* stream);
  int (*top_k)(const CudaTopKCall* call, void* stream);
  int (*dequantise)(const CudaDequantiseCall* call, void* stream);
  int (*predict)(const CudaBank* bank, const CudaBankState* state, const CudaBankCall* call,
                 void* stream);
  // Layers served without the host: see hit_path.h.
  int (*route)(const HitPath* path, const HitPathCall* call, void* stream);
  int (*seal)(const HitPath* path, const HitPathCall* call, void* stream);
};

}  // namespace prophet

// What a library exports.
extern "C" const prophet::CudaKernels* prophet_cuda_kernels();
