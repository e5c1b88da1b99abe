#include "predict/bank_network.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>

#include "core/error.h"
#include "kernels/predictor_math.h"

namespace prophet {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

template <typename T>
void require_size(const char* name, const std::vector<T>& tensor, std::size_t size) {
  if (tensor.size() != size) {
    throw InvalidArgument(std::string("the predictor's tensor ") + name + " holds " +
                          std::to_string(tensor.size()) + " numbers, its configuration asks for " +
                          std::to_string(size) + "; export the predictor again");
  }
}

bool is_finite(float v) { return std::isfinite(v); }
bool is_finite(std::uint16_t half) { return (half & 0x7c00) != 0x7c00; }

template <typename T>
void require_finite(const char* name, const std::vector<T>& tensor) {
  if (!std::all_of(tensor.begin(), tensor.end(), [](T v) { return is_finite(v); })) {
    throw InvalidArgument(std::string("the predictor's tensor ") + name +
                          " holds numbers that are not finite: it was not trained to the end");
  }
}

// [rows, n] as [rows, padded].
template <typename T>
void copy_rows(const T* from, std::size_t rows, std::size_t n, std::size_t padded, T* to) {
  for (std::size_t r = 0; r < rows; ++r) std::copy_n(from + r * n, n, to + r * padded);
}

std::vector<float> padded_rows(const std::vector<float>& from, std::size_t n, std::size_t padded) {
  std::vector<float> out(from.size() / n * padded, 0.0f);
  copy_rows(from.data(), from.size() / n, n, padded, out.data());
  return out;
}

}  // namespace

void BankNetwork::Free::operator()(std::uint16_t* memory) const { std::free(memory); }

BankNetwork::BankNetwork(BankConfig config, const BankWeights& weights)
    : config_(std::move(config)) {
  check(weights);
  columns_ = pad_to_lanes(std::size_t(config_.rank));
  lanes_ = pad_to_lanes(experts());
  leaves_ = pad_to_lanes(std::size_t(config_.latents) * experts());
  take_floats(weights);
  take_halves(weights);

  const float chance = float(config_.geometry.top_k) / float(experts());
  first_banks.assign(layers() * banks() * columns_, 0);
  std::vector<const std::uint16_t*> rows(experts());
  const std::vector<float> scales(experts(), chance);
  for (std::size_t l = 0; l < layers(); ++l) {
    for (std::size_t b = 0; b < banks(); ++b) {
      for (std::size_t i = 0; i < experts(); ++i) rows[i] = entries(l, i) + b * columns_;
      RowSum sum;
      sum.rows = rows.data();
      sum.scales = scales.data();
      sum.count = rows.size();
      sum.y = first_banks.data() + (l * banks() + b) * columns_;
      sum.n = columns_;
      predictor_kernels().add_rows(sum);
    }
  }
}

void BankNetwork::check(const BankWeights& w) const {
  const BankConfig& c = config_;
  const Geometry& g = c.geometry;
  if (g.layers < 1 || g.experts_per_layer < 1 || g.top_k < 1 || c.rank < 1 || c.heads < 1 ||
      c.latents < 0 || c.ahead < 0 || c.pairs < 0 || c.hidden < 0 || c.limits < 1) {
    throw InvalidArgument("the predictor's configuration has a size below its least");
  }
  if (c.limit < 0 || c.limit >= c.limits) {
    throw InvalidArgument("the predictor has " + std::to_string(c.limits) +
                          " limits of the gap, number " + std::to_string(c.limit) +
                          " is not among them");
  }
  for (std::int32_t index : c.bank) {
    if (index < 0 || std::size_t(index) >= c.decays.size()) {
      throw InvalidArgument("the predictor's bank names an average that it does not keep");
    }
  }
  for (float decay : c.decays) {
    if (!(decay > 0 && decay < 1)) {
      throw InvalidArgument("the predictor has a decay that is not between 0 and 1");
    }
  }
  for (const BankConfig::Recent& recent : c.recent) {
    if (recent.lag < 0 || recent.lag > 64) {
      throw InvalidArgument("the predictor looks back further than 64 rows");
    }
  }
  const std::size_t L = layers(), E = experts(), R = std::size_t(c.rank),
                    M = std::size_t(c.latents), N = std::size_t(c.heads), F = std::size_t(c.ahead),
                    D = c.decays.size();
#define PROPHET_CHECK(name, size)    \
  require_size(#name, w.name, size); \
  require_finite(#name, w.name)
  PROPHET_CHECK(enter_bank, c.bank.size() * L * E * R);
  PROPHET_CHECK(enter_recent, c.recent.size() * L * E * R);
  PROPHET_CHECK(enter_hidden, L * std::size_t(c.hidden) * R);
  PROPHET_CHECK(enter_bias, R);
  PROPHET_CHECK(norm_gain, L * R);
  PROPHET_CHECK(norm_bias, L * R);
  PROPHET_CHECK(mid_weight, w.mid_weight.empty() ? 0 : R * R);  // a network may have no middle
  PROPHET_CHECK(mid_bias, w.mid_weight.empty() ? 0 : R);
  PROPHET_CHECK(leave_weight, L * M * E * R);
  PROPHET_CHECK(leave_bias, L * M * E);
  PROPHET_CHECK(leave_mix, N * M);
  PROPHET_CHECK(own_weight, D > 0 ? L * N * (D + 2) : 0);
  PROPHET_CHECK(own_bias, L * N * E);
  PROPHET_CHECK(next_scale, L * N);
  PROPHET_CHECK(gap_weight, std::size_t(c.limits) * (1 + N));
  PROPHET_CHECK(ahead_weight, F * L * E * R);
  PROPHET_CHECK(ahead_bias, F * L * E);
  PROPHET_CHECK(ahead_prior, F * L);
  PROPHET_CHECK(ahead_pair, std::size_t(c.pairs) * F * L * E * E);
  PROPHET_CHECK(ahead_scale, F * L);
#undef PROPHET_CHECK
}

void BankNetwork::take_floats(const BankWeights& w) {
  const std::size_t L = layers(), E = experts(), R = std::size_t(config_.rank),
                    M = std::size_t(config_.latents), N = std::size_t(config_.heads);
  enter_bias = padded_rows(w.enter_bias, R, columns_);
  norm_gain = padded_rows(w.norm_gain, R, columns_);
  norm_bias = padded_rows(w.norm_bias, R, columns_);
  mid_bias = padded_rows(w.mid_bias, R, columns_);
  own_bias = padded_rows(w.own_bias, E, lanes_);
  ahead_bias = padded_rows(w.ahead_bias, E, lanes_);
  for (std::size_t l = 0; l < L; ++l) {
    for (std::size_t n = 0; n < N; ++n) {
      for (std::size_t i = 0; i < E; ++i) {
        float& bias = own_bias[(l * N + n) * lanes_ + i];
        double sum = bias;
        for (std::size_t m = 0; m < M; ++m) {
          sum += double(w.leave_mix[n * M + m]) * w.leave_bias[(l * M + m) * E + i];
        }
        bias = float(sum);
      }
    }
  }
  leave_mix = w.leave_mix;
  own_weight = w.own_weight;
  next_scale = w.next_scale;
  gap_weight = w.gap_weight;
  ahead_prior = w.ahead_prior;
  ahead_scale = w.ahead_scale;
}

void BankNetwork::take_halves(const BankWeights& w) {
  const std::size_t L = layers(), E = experts(), R = std::size_t(config_.rank), C = columns_,
                    M = std::size_t(config_.latents), F = std::size_t(config_.ahead),
                    H = std::size_t(config_.hidden);
  const std::size_t sizes[] = {
      L * E * blocks() * C, L * H * C,          w.mid_weight.empty() ? 0 : C * C,
      L * leaves_ * C,      F * L * lanes_ * C, std::size_t(config_.pairs) * F * L * E * lanes_};
  std::size_t bytes = 0;
  for (std::size_t size : sizes) bytes += 2 * size;
  const std::size_t unit = bytes >= kHugePage ? kHugePage : 64;
  bytes = std::max<std::size_t>((bytes + unit - 1) / unit * unit, unit);
  halves_.reset(static_cast<std::uint16_t*>(std::aligned_alloc(unit, bytes)));
  if (!halves_) throw std::bad_alloc();
  if (unit == kHugePage) madvise(halves_.get(), bytes, MADV_HUGEPAGE);  // a wish
  std::memset(halves_.get(), 0, bytes);
  std::uint16_t* next = halves_.get();
  std::uint16_t** const places[] = {&entries_, &hidden_, &middle_, &leave_, &ahead_, &pair_};
  for (std::size_t i = 0; i < std::size(sizes); ++i) {
    if (sizes[i] > 0) *places[i] = next;
    next += sizes[i];
  }

  for (std::size_t l = 0; l < L; ++l) {
    for (std::size_t i = 0; i < E; ++i) {
      std::uint16_t* to = entries_ + (l * E + i) * blocks() * C;
      for (std::size_t b = 0; b < blocks(); ++b) {
        const bool bank = b < banks();
        const std::size_t row = ((bank ? b : b - banks()) * L + l) * E + i;
        std::copy_n((bank ? w.enter_bank : w.enter_recent).data() + row * R, R, to + b * C);
      }
    }
    copy_rows(w.enter_hidden.data() + l * H * R, H, R, C, hidden_ + l * H * C);
    write_tiles(w.leave_weight.data() + l * M * E * R, M * E, R, C, leave_ + l * leaves_ * C);
  }
  if (middle_) write_tiles(w.mid_weight.data(), R, R, C, middle_);
  for (std::size_t at = 0; at < F * L; ++at) {
    write_tiles(w.ahead_weight.data() + at * E * R, E, R, C, ahead_ + at * lanes_ * C);
  }
  if (pair_) {
    copy_rows(w.ahead_pair.data(), std::size_t(config_.pairs) * F * L * E, E, lanes_, pair_);
  }
}

}  // namespace prophet
