// The kernels of predictor_math.h over one type of vector. Internal: included by
// predictor_math_*.cc, one per instruction set, which define
//
//   struct V   kWidth floats; load, half (widens float16), all, store, + - * /, fma(a, b, c) = a b
//   + c,
//              min, max, sum, round (to the nearest), two_to(k) for whole k in [-126, 127],
//              split(x, e, m): x = 2^e m with m in [sqrt(1/2), sqrt(2)), x positive and normal
//
// before they include it. Everything is in an anonymous namespace, so that no function compiled for
// one instruction set can be picked by the linker for another.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/predictor_math.h"

namespace prophet {
namespace {

// 2^k * exp(r) with |r| <= ln 2 / 2 and a Taylor polynomial: its first left-out term is 5e-9.
inline V exponential(V x) {
  x = V::max(V::all(-87), V::min(V::all(87), x));
  const V k = V::round(x * V::all(1.44269504f));
  V r = V::fma(k, V::all(-0.693359375f), x);
  r = V::fma(k, V::all(2.12194440e-4f), r);
  V sum = V::all(1.0f / 5040);
  sum = V::fma(sum, r, V::all(1.0f / 720));
  sum = V::fma(sum, r, V::all(1.0f / 120));
  sum = V::fma(sum, r, V::all(1.0f / 24));
  sum = V::fma(sum, r, V::all(1.0f / 6));
  sum = V::fma(sum, r, V::all(0.5f));
  sum = V::fma(sum, r, V::all(1.0f));
  sum = V::fma(sum, r, V::all(1.0f));
  return sum * V::two_to(k);
}

// log(2^e m) = 2 atanh(s) + e ln 2, s = (m - 1) / (m + 1), |s| < 0.172.
inline V logarithm(V x) {
  V e, m;
  V::split(x, e, m);
  const V s = (m - V::all(1)) / (m + V::all(1)), s2 = s * s;
  V sum = V::all(1.0f / 11);
  sum = V::fma(sum, s2, V::all(1.0f / 9));
  sum = V::fma(sum, s2, V::all(1.0f / 7));
  sum = V::fma(sum, s2, V::all(1.0f / 5));
  sum = V::fma(sum, s2, V::all(1.0f / 3));
  sum = V::fma(sum, s2, V::all(1.0f));
  return V::fma(e, V::all(0.693147181f), (s + s) * sum);
}

inline V sigmoid(V x) { return V::all(1) / (V::all(1) + exponential(V::all(0) - x)); }

// Blocks of four vectors: enough independent sums to hide the latency of one.
constexpr std::size_t kBlock = kPredictorLanes / V::kWidth >= 4 ? 4 : kPredictorLanes / V::kWidth;

void add_rows(const RowSum& call) {
  const V keep = V::all(call.keep);
  for (std::size_t i = 0; i < call.n; i += kBlock * V::kWidth) {
    V sums[kBlock];
    for (std::size_t v = 0; v < kBlock; ++v) sums[v] = keep * V::load(call.y + i + v * V::kWidth);
    for (std::size_t k = 0; k < call.count; ++k) {
      const V scale = V::all(call.scales[k]);
      const std::uint16_t* row = call.rows[k] + i;
      for (std::size_t v = 0; v < kBlock; ++v) {
        sums[v] = V::fma(scale, V::half(row + v * V::kWidth), sums[v]);
      }
    }
    for (std::size_t v = 0; v < kBlock; ++v) sums[v].store(call.y + i + v * V::kWidth);
    if (!call.total) continue;
    for (std::size_t v = 0; v < kBlock; ++v) {
      float* total = call.total + i + v * V::kWidth;
      (V::load(total) + sums[v]).store(total);
    }
  }
}

inline V widen(const std::uint16_t* p) { return V::half(p); }
inline V widen(const float* p) { return V::load(p); }

constexpr std::size_t kAheadBytes = 2048;  // how far a stream of tiles is fetched in advance

template <typename Weight>
void dot_tiles(const Weight* tiles, std::size_t n, std::size_t columns, const float* x, float* y) {
  constexpr std::size_t kVectors = kPredictorLanes / V::kWidth;
  constexpr std::size_t kChains = kVectors >= 4 ? 2 : 4;  // columns go to the chains in turn
  for (std::size_t i = 0; i < n; i += kPredictorLanes) {
    V sums[kChains][kVectors];
    for (auto& chain : sums) {
      for (V& sum : chain) sum = V::all(0);
    }
    for (std::size_t c = 0; c < columns; c += kChains) {
      for (std::size_t a = 0; a < kChains; ++a) {
        // It may point past the tiles; a prefetch cannot fault.
        for (std::size_t line = 0; line < kPredictorLanes * sizeof(Weight); line += 64) {
          __builtin_prefetch(reinterpret_cast<const char*>(reinterpret_cast<std::uintptr_t>(tiles) +
                                                           kAheadBytes + line));
        }
        const V input = V::all(x[c + a]);
        for (std::size_t v = 0; v < kVectors; ++v) {
          sums[a][v] = V::fma(widen(tiles + v * V::kWidth), input, sums[a][v]);
        }
        tiles += kPredictorLanes;
      }
    }
    for (std::size_t v = 0; v < kVectors; ++v) {
      V sum = sums[0][v] + sums[1][v];
      for (std::size_t a = 2; a < kChains; a += 2) sum = sum + (sums[a][v] + sums[a + 1][v]);
      sum.store(y + i + v * V::kWidth);
    }
  }
}

void exchange(const float* fresh, float* kept, float* sum, std::size_t n) {
  for (std::size_t i = 0; i < n; i += V::kWidth) {
    const V now = V::load(fresh + i);
    (V::load(sum + i) + (now - V::load(kept + i))).store(sum + i);
    now.store(kept + i);
  }
}

void fade(float keep, float* y, std::size_t n) {
  for (std::size_t i = 0; i < n; i += V::kWidth) (V::all(keep) * V::load(y + i)).store(y + i);
}

template <bool kSwish>
void normalise(const Normalise& call) {
  V sum = V::all(0), square = V::all(0);
  for (std::size_t i = 0; i < call.n; i += V::kWidth) {
    V x = V::load(call.first + i);
    if (call.second) x = x + V::load(call.second + i);
    x.store(call.out + i);
    sum = sum + x;
  }
  const float mean = sum.sum() / float(call.used);
  for (std::size_t i = 0; i < call.n; i += V::kWidth) {
    const V away = V::load(call.out + i) - V::all(mean);
    square = V::fma(away, away, square);
  }
  const float padding = float(call.n - call.used) * mean * mean;
  const float variance = (square.sum() - padding) / float(call.used);
  const V scale = V::all(1 / __builtin_sqrtf((variance > 0 ? variance : 0) + 1e-5f));
  for (std::size_t i = 0; i < call.n; i += V::kWidth) {
    const V y = V::fma((V::load(call.out + i) - V::all(mean)) * scale, V::load(call.gain + i),
                       V::load(call.bias + i));
    if constexpr (kSwish) {
      const V gate = V::min(V::max(y + V::all(3), V::all(0)), V::all(6));
      (y * gate * V::all(1.0f / 6)).store(call.out + i);
    } else {
      y.store(call.out + i);
    }
  }
}

void heads(const Heads& call) {
  const std::size_t features = call.averages_count + call.more_count;
  for (std::size_t i = 0; i < call.n; i += V::kWidth) {
    for (std::size_t d = 0; d < call.averages_count; ++d) {
      logarithm(V::load(call.averages + d * call.n + i) + V::all(call.shift))
          .store(call.scratch + d * V::kWidth);
    }
    for (std::size_t f = 0; f < call.more_count; ++f) {
      V::load(call.more + f * call.n + i)
          .store(call.scratch + (call.averages_count + f) * V::kWidth);
    }
    V gap = V::all(call.gap_weight[0]);
    for (std::size_t h = 0; h < call.heads; ++h) {
      V logit = V::load(call.own_bias + h * call.n + i);
      const float* weight = call.own_weight + h * features;
      for (std::size_t f = 0; f < features; ++f) {
        logit = V::fma(V::all(weight[f]), V::load(call.scratch + f * V::kWidth), logit);
      }
      for (std::size_t m = 0; m < call.latents; ++m) {
        logit = V::fma(V::all(call.mix[h * call.latents + m]),
                       V::load(call.outputs + m * call.latent_stride + i), logit);
      }
      if (h == 0) logit.store(call.raw + i);
      // 1 - sigmoid(v) = sigmoid(-v): the chance that it is not used within this head's turns.
      gap = V::fma(V::all(call.gap_weight[1 + h]), sigmoid(V::all(-call.scale[h]) * logit), gap);
    }
    V::max(gap, V::all(1)).store(call.gaps + i);
  }
}

void ahead(const Ahead& call) {
  for (std::size_t i = 0; i < call.n; i += V::kWidth) {
    V logit = V::fma(V::all(call.prior), V::load(call.raw + i), V::load(call.bias + i)) +
              V::load(call.dots + i);
    for (std::size_t k = 0; k < call.pair_count; ++k) logit = logit + V::half(call.pairs[k] + i);
    sigmoid(V::all(call.scale) * logit).store(call.p + i);
  }
}

template <std::size_t kRows>
void few_products(const Products& call, std::size_t first) {
  constexpr std::size_t kVectors = kPredictorLanes / V::kWidth;
  constexpr std::size_t kSums = kRows * kVectors;
  constexpr std::size_t kChains = kSums >= 8 ? 1 : kSums >= 4 ? 2 : 4;
  const std::uint16_t* tiles = call.tiles;
  const float* x[kRows];
  for (std::size_t r = 0; r < kRows; ++r) x[r] = call.x + (first + r) * call.x_stride;
  for (std::size_t i = 0; i < call.n; i += kPredictorLanes) {
    V sums[kChains][kRows][kVectors];
    for (auto& chain : sums) {
      for (auto& row : chain) {
        for (V& sum : row) sum = V::all(0);
      }
    }
    for (std::size_t c = 0; c < call.columns; c += kChains) {
      for (std::size_t a = 0; a < kChains; ++a) {
        // It may point past the tiles; a prefetch cannot fault.
        __builtin_prefetch(
            reinterpret_cast<const char*>(reinterpret_cast<std::uintptr_t>(tiles) + kAheadBytes));
        V weights[kVectors];
        for (std::size_t v = 0; v < kVectors; ++v) weights[v] = V::half(tiles + v * V::kWidth);
        for (std::size_t r = 0; r < kRows; ++r) {
          const V input = V::all(x[r][c + a]);
          for (std::size_t v = 0; v < kVectors; ++v) {
            sums[a][r][v] = V::fma(weights[v], input, sums[a][r][v]);
          }
        }
        tiles += kPredictorLanes;
      }
    }
    for (std::size_t r = 0; r < kRows; ++r) {
      for (std::size_t v = 0; v < kVectors; ++v) {
        V sum = sums[0][r][v];
        for (std::size_t a = 1; a < kChains; ++a) sum = sum + sums[a][r][v];
        sum.store(call.y + (first + r) * call.y_stride + i + v * V::kWidth);
      }
    }
  }
}

void products(const Products& call) {
  for (std::size_t r = 0; r < call.rows;) {
    const std::size_t left = call.rows - r;
    if (left >= 3) {
      few_products<3>(call, r);
    } else if (left == 2) {
      few_products<2>(call, r);
    } else {
      few_products<1>(call, r);
    }
    r += left < 3 ? left : 3;
  }
}

void attend(const Attend& call) {
  float shares[kMostPositions];
  const std::size_t padded = (call.positions + V::kWidth - 1) / V::kWidth * V::kWidth;
  for (std::size_t p = call.positions; p < padded; ++p) shares[p] = 0;
  for (std::size_t q = 0; q < call.queries; ++q) {
    for (std::size_t h = 0; h < call.heads * call.head_n; h += call.head_n) {
      const float* query = call.query + q * call.stride + h;
      float most = 0;
      for (std::size_t p = 0; p < call.positions; ++p) {
        const float* key = call.key + p * call.stride + h;
        V sum = V::all(0);
        for (std::size_t i = 0; i < call.head_n; i += V::kWidth) {
          sum = V::fma(V::load(query + i), V::load(key + i), sum);
        }
        shares[p] = call.scale * sum.sum();
        most = p == 0 || shares[p] > most ? shares[p] : most;
      }
      for (std::size_t p = 0; p < padded; p += V::kWidth) {
        exponential(V::load(shares + p) - V::all(most)).store(shares + p);
      }
      float total = 0;
      for (std::size_t p = 0; p < call.positions; ++p) total += shares[p];
      for (std::size_t i = 0; i < call.head_n; i += V::kWidth) {
        V sum = V::all(0);
        for (std::size_t p = 0; p < call.positions; ++p) {
          sum = V::fma(V::all(shares[p]), V::load(call.value + p * call.stride + h + i), sum);
        }
        (sum * V::all(1 / total)).store(call.out + q * call.out_stride + h + i);
      }
    }
  }
}

// erf by a polynomial in 1 / (1 + 0.3275911 |v|) times exp(-v v), Abramowitz and Stegun 7.1.26:
// off by 1.5e-7 at most.
void gelu(const float* x, const float* bias, float* y, std::size_t n) {
  for (std::size_t i = 0; i < n; i += V::kWidth) {
    const V in = V::load(x + i) + V::load(bias + i);
    const V v = V::max(in, V::all(0) - in) * V::all(0.707106781f);
    const V t = V::all(1) / V::fma(V::all(0.3275911f), v, V::all(1));
    V sum = V::fma(V::all(1.061405429f), t, V::all(-1.453152027f));
    sum = V::fma(sum, t, V::all(1.421413741f));
    sum = V::fma(sum, t, V::all(-0.284496736f));
    sum = V::fma(sum, t, V::all(0.254829592f));
    // What is left of 1 - erf(v), of the sign of `in`: x + |x| - |x| * rest, halved.
    const V rest = sum * t * exponential(V::all(0) - v * v);
    const V size = V::max(in, V::all(0) - in);
    ((in + size - size * rest) * V::all(0.5f)).store(y + i);
  }
}

constexpr PredictorKernels kKernels = {add_rows,
                                       dot_tiles<std::uint16_t>,
                                       dot_tiles<float>,
                                       exchange,
                                       fade,
                                       normalise<true>,
                                       heads,
                                       ahead,
                                       products,
                                       normalise<false>,
                                       attend,
                                       gelu};

}  // namespace
}  // namespace prophet
