// The arithmetic of predictors, in float32, for the instruction set that kernel_isa() names.
//
// Every length called `n` and `columns` is a multiple of kPredictorLanes: callers pad their arrays
// with zeros, so no kernel has a tail. float16 is given as raw bits, all finite. Sums are taken in
// an order that depends on the sizes and the instruction set alone.
#pragma once

#include <cstddef>
#include <cstdint>

namespace prophet {

inline constexpr std::size_t kPredictorLanes = 32;

constexpr std::size_t pad_to_lanes(std::size_t n) {
  return (n + kPredictorLanes - 1) / kPredictorLanes * kPredictorLanes;
}

// y = keep * y + sum over k of scales[k] * rows[k], and total += y where total is not null.
struct RowSum {
  const std::uint16_t* const* rows = nullptr;  // [count], each [n] float16
  const float* scales = nullptr;               // [count]
  std::size_t count = 0;
  float keep = 1;
  float* y = nullptr;      // [n]
  float* total = nullptr;  // [n] or null
  std::size_t n = 0;
};

// out = hardswish((x - mean) / sqrt(variance + 1e-5) * gain + bias), x = first + second, mean and
// variance of the first `used` numbers; both inputs are zero behind them.
struct Normalise {
  const float* first = nullptr;
  const float* second = nullptr;  // or null
  const float* gain = nullptr;
  const float* bias = nullptr;
  float* out = nullptr;
  std::size_t used = 0, n = 0;
};

// Heads over the experts of one layer (prophet_moe/predict/export.py, step 5):
//   logit[h] = own_weight[h] . features + own_bias[h] + sum over m of mix[h][m] * outputs[m]
//   gap      = max(1, gap_weight[0] + sum over h of gap_weight[1 + h] * sigmoid(-scale[h] *
//   logit[h]))
// The features are log(averages[d] + shift), then `more`. `raw` gets the logit of head 0.
struct Heads {
  std::size_t averages_count = 0, more_count = 0, latents = 0, heads = 0;
  const float* averages = nullptr;  // [averages_count, n]
  float shift = 0;
  const float* more = nullptr;        // [more_count, n]
  const float* outputs = nullptr;     // latent m of expert i at m * latent_stride + i
  std::size_t latent_stride = 0;      // any number
  const float* own_weight = nullptr;  // [heads, averages_count + more_count]
  const float* own_bias = nullptr;    // [heads, n]
  const float* mix = nullptr;         // [heads, latents]
  const float* scale = nullptr;       // [heads]
  const float* gap_weight = nullptr;  // [1 + heads]
  float* scratch = nullptr;           // [(averages_count + more_count) * kPredictorLanes]
  float* raw = nullptr;               // [n]
  float* gaps = nullptr;              // [n]
  std::size_t n = 0;
};

// p = sigmoid(scale * (dots + prior * raw + bias + sum over k of pairs[k])).
struct Ahead {
  const float* dots = nullptr;
  const float* raw = nullptr;
  const float* bias = nullptr;
  const std::uint16_t* const* pairs = nullptr;  // [pair_count], each [n] float16
  std::size_t pair_count = 0;
  float prior = 0, scale = 1;
  float* p = nullptr;
  std::size_t n = 0;
};

// y[r] = matrix * x[r] for several vectors; every tile is read once for a few of them.
struct Products {
  const std::uint16_t* tiles = nullptr;  // as of dot_tiles_f16
  std::size_t n = 0, columns = 0;
  const float* x = nullptr;  // vector r at r * x_stride
  std::size_t x_stride = 0;
  float* y = nullptr;  // the same with y_stride
  std::size_t y_stride = 0;
  std::size_t rows = 0;
};

// Softmax attention of `queries` positions over all `positions`, a head at a time:
//   out[q] = sum over p of softmax over p of (scale * query[q] . key[p]) * value[p]
// Head h has the numbers h * head_n .. of every vector; head_n is padded as `n` is.
struct Attend {
  const float* query = nullptr;  // position q at q * stride
  const float* key = nullptr;    // position p at p * stride
  const float* value = nullptr;  // the same
  std::size_t stride = 0;
  float* out = nullptr;  // position q at q * out_stride
  std::size_t out_stride = 0;
  std::size_t queries = 0, positions = 0;  // positions <= kMostPositions
  std::size_t heads = 0, head_n = 0;
  float scale = 1;
};
inline constexpr std::size_t kMostPositions = 64;

// Matrices lie in tiles of kPredictorLanes outputs: [n / lanes, columns, lanes], so that a product
// reads one ascending stream of memory and needs no sums across lanes.
struct PredictorKernels {
  void (*add_rows)(const RowSum&);
  // y[i] = sum over c of tile(i)[c] * x[c]; n outputs.
  void (*dot_tiles_f16)(const std::uint16_t* tiles, std::size_t n, std::size_t columns,
                        const float* x, float* y);
  void (*dot_tiles_f32)(const float* tiles, std::size_t n, std::size_t columns, const float* x,
                        float* y);
  // sum += fresh - kept; kept = fresh.
  void (*exchange)(const float* fresh, float* kept, float* sum, std::size_t n);
  // y = keep * y.
  void (*fade)(float keep, float* y, std::size_t n);
  void (*normalise)(const Normalise&);
  void (*heads)(const Heads&);
  void (*ahead)(const Ahead&);
  void (*products)(const Products&);
  // As `normalise` without the hardswish.
  void (*layer_norm)(const Normalise&);
  void (*attend)(const Attend&);
  // y = (x + bias) * (1 + erf((x + bias) / sqrt 2)) / 2, to 1e-6 of the larger of 1 and |x + bias|.
  void (*gelu)(const float* x, const float* bias, float* y, std::size_t n);
};

// y = x in tiles: element (i, c) of a dense [outputs, columns] matrix; the tiles hold
// pad_to_lanes(outputs) * padded_columns numbers and are zero where x has none.
template <typename T>
void write_tiles(const T* x, std::size_t outputs, std::size_t columns, std::size_t padded_columns,
                 T* tiles) {
  for (std::size_t i = 0; i < outputs; ++i) {
    T* lane = tiles + i / kPredictorLanes * padded_columns * kPredictorLanes + i % kPredictorLanes;
    for (std::size_t c = 0; c < columns; ++c) lane[c * kPredictorLanes] = x[i * columns + c];
  }
}

// Starts to bring bytes towards the core; what they hold is of no matter.
inline void prefetch(const void* at, std::size_t bytes) {
  const char* const first = static_cast<const char*>(at);
  for (std::size_t i = 0; i < bytes; i += 64) __builtin_prefetch(first + i);
}

const PredictorKernels& predictor_kernels();

}  // namespace prophet
