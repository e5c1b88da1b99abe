// int8 and int4 weights as a whole matrix of floats.
#include "kernels/launchers_cuda.h"
#include "kernels/weights_cuda.cuh"

namespace prophet {
namespace {

constexpr int kBlock = 256;

// Eight elements at a time: sixteen bytes of 16-bit floats.
constexpr int kFew = 8;

__device__ __forceinline__ unsigned two_as(std::uint8_t type, float first, float second) {
  if (type == 1) {
    return static_cast<unsigned>(__half_as_ushort(__float2half_rn(first))) |
           static_cast<unsigned>(__half_as_ushort(__float2half_rn(second))) << 16;
  }
  return static_cast<unsigned>(__bfloat16_as_ushort(__float2bfloat16_rn(first))) |
         static_cast<unsigned>(__bfloat16_as_ushort(__float2bfloat16_rn(second))) << 16;
}

template <CudaWeights W>
__global__ void __launch_bounds__(kBlock) dequantise(CudaDequantiseCall c) {
  const int row = static_cast<int>(blockIdx.y);
  const int column = static_cast<int>(blockIdx.x * kBlock + threadIdx.x) * kFew;
  if (column >= c.columns) return;
  const WeightRow from = row_of<W>(&c.matrix, row, c.columns, c.group);
  float scale, zero;
  group_of<W>(from, column, c.group, scale, zero);
  constexpr int kBytes = W == CudaWeights::int4 ? kFew / 2 : kFew;
  const long long at = row_bytes(W, column), left = row_bytes(W, c.columns) - at;
  const uint4 raw = load_anywhere(from.bytes + at, left < kBytes ? static_cast<int>(left) : kBytes);
  float w[kFew];
  unpack<W>(raw.x, zero, w);
  if constexpr (W == CudaWeights::int8) unpack<W>(raw.y, zero, w + 4);
#pragma unroll
  for (int i = 0; i < kFew; ++i) w[i] *= scale;

  const long long to = static_cast<long long>(row) * c.columns + column;
  const bool whole = column + kFew <= c.columns;
  if (whole && c.out_type == 0 && multiple_of_16(static_cast<float*>(c.out) + to)) {
    float4* const out = reinterpret_cast<float4*>(static_cast<float*>(c.out) + to);
    out[0] = make_float4(w[0], w[1], w[2], w[3]);
    out[1] = make_float4(w[4], w[5], w[6], w[7]);
  } else if (whole && c.out_type != 0 && multiple_of_16(static_cast<short*>(c.out) + to)) {
    *reinterpret_cast<uint4*>(static_cast<short*>(c.out) + to) =
        make_uint4(two_as(c.out_type, w[0], w[1]), two_as(c.out_type, w[2], w[3]),
                   two_as(c.out_type, w[4], w[5]), two_as(c.out_type, w[6], w[7]));
  } else {
#pragma unroll
    for (int i = 0; i < kFew; ++i) {
      if (column + i < c.columns) store_as(c.out_type, c.out, to + i, w[i]);
    }
  }
}

}  // namespace

int cuda_dequantise(const CudaDequantiseCall* call, void* stream) {
  const CudaDequantiseCall& c = *call;
  if (c.rows < 1 || c.rows > 65535 || c.columns < 1 || c.group < 32 || c.group % 32 != 0 ||
      !is_quantised(c.weights) || c.out_type > 2) {
    return kInvalidValue;
  }
  const auto kernel = c.weights == CudaWeights::int8 ? dequantise<CudaWeights::int8>
                                                     : dequantise<CudaWeights::int4>;
  const dim3 grid((c.columns + kBlock * kFew - 1) / (kBlock * kFew), c.rows);
  return PROPHET_LAUNCH(kernel, grid, dim3(kBlock), 0, stream, c);
}

}  // namespace prophet
