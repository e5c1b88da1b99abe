// Rows of weights as kernels read them: sixteen bytes at a time, as floats in registers.
//
// A row of a matrix may begin at any byte. Where the matrix and its rows are multiples of 16 a lane
// loads sixteen bytes at once; elsewhere it loads the aligned words around them and shifts, which
// stays inside the words that hold the row. Bytes behind a row's end count as zeros.
#pragma once

#include "kernels/cuda_dialect.cuh"
#include "kernels/cuda_kernels.h"

namespace prophet {

// The vectors that rows are multiplied with are float32, start on 16 bytes and are padded with
// zeros to a multiple of this.
constexpr int kVectorPad = 32;
__host__ __device__ constexpr int padded(int n) {
  return (n + kVectorPad - 1) / kVectorPad * kVectorPad;
}

__host__ __device__ constexpr bool is_quantised(CudaWeights type) {
  return type == CudaWeights::int8 || type == CudaWeights::int4;
}
// Elements in sixteen bytes.
__host__ __device__ constexpr int per_chunk(CudaWeights type) {
  return type == CudaWeights::f32    ? 4
         : type == CudaWeights::int8 ? 16
         : type == CudaWeights::int4 ? 32
                                     : 8;
}
__host__ __device__ constexpr long long row_bytes(CudaWeights type, int columns) {
  return type == CudaWeights::f32    ? columns * 4ll
         : type == CudaWeights::int8 ? columns
         : type == CudaWeights::int4 ? (columns + 1) / 2
                                     : columns * 2ll;
}

__device__ __forceinline__ bool multiple_of_16(const void* address) {
  return (reinterpret_cast<unsigned long long>(address) & 15) == 0;
}

// The sixteen bytes at `at`, of which the first `valid` (1 .. 16) exist.
__device__ __forceinline__ uint4 load_anywhere(const unsigned char* at, int valid) {
  const int before = static_cast<int>(reinterpret_cast<unsigned long long>(at) & 3);
  const unsigned* word = reinterpret_cast<const unsigned*>(at - before);
  unsigned words[5];
#pragma unroll
  for (int i = 0; i < 5; ++i) words[i] = 4 * i < before + valid ? __ldg(word + i) : 0u;
  unsigned bytes[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int keep = valid - 4 * i;  // bytes of this word
    const unsigned mask = keep >= 4 ? ~0u : keep > 0 ? (1u << (8 * keep)) - 1 : 0u;
    bytes[i] = __funnelshift_r(words[i], words[i + 1], 8 * before) & mask;
  }
  return make_uint4(bytes[0], bytes[1], bytes[2], bytes[3]);
}

// A whole number below 2^23 as a float, without the conversion unit: exact.
__device__ __forceinline__ float small_to_float(unsigned n) {
  return __uint_as_float(0x4b000000u | n) - 8388608.0f;
}

// Four bytes as per_chunk(W) / 4 floats; quantised ones less `zero`, not yet scaled.
template <CudaWeights W>
__device__ __forceinline__ void unpack(unsigned word, float zero, float* w) {
  if constexpr (W == CudaWeights::f32) {
    w[0] = __uint_as_float(word);
  } else if constexpr (W == CudaWeights::bf16) {
    w[0] = __uint_as_float(word << 16);
    w[1] = __uint_as_float(word & 0xffff0000u);
  } else if constexpr (W == CudaWeights::f16) {
    w[0] = __half2float(__ushort_as_half(static_cast<unsigned short>(word)));
    w[1] = __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16)));
  } else if constexpr (W == CudaWeights::int8) {
    const unsigned biased = word ^ 0x80808080u;  // -128 .. 127 as 0 .. 255
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      w[j] = small_to_float(biased >> (8 * j) & 0xffu) - (128.0f + zero);
    }
  } else {
#pragma unroll
    for (int j = 0; j < 8; ++j) w[j] = small_to_float(word >> (4 * j) & 0xfu) - zero;
  }
}

// One row of a matrix in memory.
struct WeightRow {
  const unsigned char* bytes;
  const __half* scales;        // of its groups; unused unless quantised
  const unsigned char* zeros;  // or null
  bool aligned;                // sixteen bytes at a time
};

template <CudaWeights W>
__device__ __forceinline__ WeightRow row_of(const void* matrix, int row, int columns, int group) {
  const long long bytes = row_bytes(W, columns);
  WeightRow r;
  if constexpr (is_quantised(W)) {
    const CudaQuantised& m = *static_cast<const CudaQuantised*>(matrix);
    const long long first = static_cast<long long>(row) * ((columns + group - 1) / group);
    r.bytes = static_cast<const unsigned char*>(m.values) + row * bytes;
    r.scales = static_cast<const __half*>(m.scales) + first;
    r.zeros = m.zeros == nullptr ? nullptr : m.zeros + first;
    r.aligned = multiple_of_16(m.values) && bytes % 16 == 0;
  } else {
    r.bytes = static_cast<const unsigned char*>(matrix) + row * bytes;
    r.scales = nullptr;
    r.zeros = nullptr;
    r.aligned = multiple_of_16(matrix) && bytes % 16 == 0;
  }
  return r;
}

// Scale and zero of the group that holds sixteen bytes.
template <CudaWeights W>
__device__ __forceinline__ void group_of(const WeightRow& row, int column, int group, float& scale,
                                         float& zero) {
  scale = 1.0f;
  zero = 0.0f;
  if constexpr (is_quantised(W)) {
    const int g = column / group;
    scale = __half2float(row.scales[g]);
    zero = row.zeros != nullptr     ? small_to_float(row.zeros[g])
           : W == CudaWeights::int4 ? 8.0f
                                    : 0.0f;
  }
}

// sum + w . x, in rising order.
template <int N>
__device__ __forceinline__ float dot_few(const float (&w)[N], const float* x, float sum) {
#pragma unroll
  for (int i = 0; i < N; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(x + i);
    sum = fmaf(w[i + 1], four.y, fmaf(w[i], four.x, sum));
    sum = fmaf(w[i + 3], four.w, fmaf(w[i + 2], four.z, sum));
  }
  return sum;
}

// sums[t] += row . x[t], each lane its own share: chunks lane, lane + 32, ... in rising order, so
// that a sum has the same bits whatever T is.
template <CudaWeights W, int T>
__device__ __forceinline__ void add_chunk(uint4 raw, float scale, float zero, int column,
                                          const float* const (&x)[T], float (&sums)[T]) {
  constexpr int kWord = per_chunk(W) / 4;             // elements of four bytes
  constexpr int kWords = kWord >= 4 ? 1 : 4 / kWord;  // unpacked at once
  const unsigned words[4] = {raw.x, raw.y, raw.z, raw.w};
  float part[T];
#pragma unroll
  for (int t = 0; t < T; ++t) part[t] = is_quantised(W) ? 0.0f : sums[t];
#pragma unroll
  for (int i = 0; i < 4; i += kWords) {
    float w[kWord * kWords];
#pragma unroll
    for (int j = 0; j < kWords; ++j) unpack<W>(words[i + j], zero, w + j * kWord);
#pragma unroll
    for (int t = 0; t < T; ++t) part[t] = dot_few(w, x[t] + column + i * kWord, part[t]);
  }
#pragma unroll
  for (int t = 0; t < T; ++t) sums[t] = is_quantised(W) ? fmaf(scale, part[t], sums[t]) : part[t];
}

// row . x[t] for t < T, the same bits in every lane of the warp.
template <CudaWeights W, int T>
__device__ __forceinline__ void dot_row(const WeightRow& row, int columns, int group,
                                        const float* const (&x)[T], float (&sums)[T]) {
  constexpr int kPer = per_chunk(W);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int chunks = (columns + kPer - 1) / kPer;
#pragma unroll
  for (int t = 0; t < T; ++t) sums[t] = 0.0f;
  float scale, zero;
  if (row.aligned) {
    const uint4* const bytes = reinterpret_cast<const uint4*>(row.bytes);
#pragma unroll(T > 1 ? 1 : is_quantised(W) ? 2 : 4)
    for (int c = lane; c < chunks; c += kWarp) {
      const uint4 raw = __ldg(bytes + c);
      group_of<W>(row, c * kPer, group, scale, zero);
      add_chunk<W, T>(raw, scale, zero, c * kPer, x, sums);
    }
  } else {
    const long long bytes = row_bytes(W, columns);
    for (int c = lane; c < chunks; c += kWarp) {
      const long long left = bytes - 16ll * c;
      const uint4 raw =
          load_anywhere(row.bytes + 16ll * c, left < 16 ? static_cast<int>(left) : 16);
      group_of<W>(row, c * kPer, group, scale, zero);
      add_chunk<W, T>(raw, scale, zero, c * kPer, x, sums);
    }
  }
#pragma unroll
  for (int t = 0; t < T; ++t) sums[t] = warp_sum(sums[t]);
}

// Elements of a DType (core/types.h) as floats and back, rounding to nearest even.
__device__ __forceinline__ float load_as(std::uint8_t type, const void* array, long long i) {
  if (type == 0) return static_cast<const float*>(array)[i];
  const unsigned short bits = static_cast<const unsigned short*>(array)[i];
  return type == 1 ? __half2float(__ushort_as_half(bits))
                   : __uint_as_float(static_cast<unsigned>(bits) << 16);
}

__device__ __forceinline__ void store_as(std::uint8_t type, void* array, long long i, float value) {
  if (type == 0) {
    static_cast<float*>(array)[i] = value;
  } else if (type == 1) {
    static_cast<__half*>(array)[i] = __float2half_rn(value);
  } else {
    static_cast<__nv_bfloat16*>(array)[i] = __float2bfloat16_rn(value);
  }
}

}  // namespace prophet
