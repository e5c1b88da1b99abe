#include "predict/bank_predictor.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "kernels/vector_math.h"

namespace prophet {
namespace {

constexpr std::int32_t kRowsThatMatter = 1024;  // older ones of a step have faded
constexpr float kLogShift = 0.004f;

inline float hardswish(float v) { return v * std::min(std::max(v + 3, 0.0f), 6.0f) / 6; }

template <typename T>
void require_size(const char* name, const std::vector<T>& tensor, std::size_t size) {
  if (tensor.size() != size) {
    throw InvalidArgument(std::string("the predictor's tensor ") + name + " holds " +
                          std::to_string(tensor.size()) + " numbers, its configuration asks for " +
                          std::to_string(size) + "; export the predictor again");
  }
}

void require_finite(const char* name, const std::vector<float>& tensor) {
  if (!std::all_of(tensor.begin(), tensor.end(), [](float v) { return std::isfinite(v); })) {
    throw InvalidArgument(std::string("the predictor's tensor ") + name +
                          " holds numbers that are not finite: it was not trained to the end");
  }
}

void require_finite(const char* name, const std::vector<std::uint16_t>& tensor) {
  auto finite = [](std::uint16_t half) { return (half & 0x7c00) != 0x7c00; };
  if (!std::all_of(tensor.begin(), tensor.end(), finite)) {
    throw InvalidArgument(std::string("the predictor's tensor ") + name +
                          " holds numbers that are not finite: it was not trained to the end");
  }
}

}  // namespace

BankPredictor::BankPredictor(BankConfig config, BankWeights weights)
    : config_(std::move(config)), weights_(std::move(weights)) {
  check();
  for (const BankConfig::Recent& recent : config_.recent) {
    lags_ = std::max(lags_, std::size_t(recent.lag) + 1);
  }
  lags_ = std::max<std::size_t>(lags_, 2);  // own features look one row back
  reset();
}

void BankPredictor::check() const {
  const BankConfig& c = config_;
  const Geometry& g = c.geometry;
  if (g.layers < 1 || g.experts_per_layer < 1 || g.top_k < 1 || c.rank < 1 || c.heads < 1 ||
      c.latents < 0 || c.ahead < 0 || c.hidden < 0 || c.limits < 1) {
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
  for (const BankConfig::Recent& recent : c.recent) {
    if (recent.lag < 0 || recent.lag > 64) {
      throw InvalidArgument("the predictor looks back further than 64 rows");
    }
  }
  const std::size_t L = layers(), E = experts(), R = rank(), M = std::size_t(c.latents),
                    N = std::size_t(c.heads), F = std::size_t(c.ahead), D = c.decays.size();
  const BankWeights& w = weights_;
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
  PROPHET_CHECK(ahead_pair, c.pair ? F * L * E * E : 0);
  PROPHET_CHECK(ahead_scale, F * L);
#undef PROPHET_CHECK
}

void BankPredictor::reset() {
  const std::size_t L = layers(), E = experts(), R = rank(), B = config_.bank.size();
  const float chance = float(config_.geometry.top_k) / float(E);
  averages_.assign(L * config_.decays.size() * E, chance);
  banks_.assign(L * B * R, 0);
  shares_.assign(L * R, 0);
  const float odds = chance < 1 ? std::log(chance / (1 - chance)) : 16.0f;
  raw_.assign(L * E, odds);
  rows_.assign(L * lags_, {});
  entered_ = weights_.enter_bias;
  hidden_.assign(R, 0);
  deep_.assign(R, 0);
  a_.assign(R, 0);
  b_.assign(R, 0);
  wide_.assign(R, 0);
  seen_ = -1;
  for (std::size_t l = 0; l < L; ++l) {
    for (std::size_t b = 0; b < B; ++b) {
      float* u = banks_.data() + (l * B + b) * R;
      for (std::size_t i = 0; i < E; ++i) {
        const std::uint16_t* row = weights_.enter_bank.data() + ((b * L + l) * E + i) * R;
        add_row_f16(row, R, chance, wide_.data(), u);
      }
      for (std::size_t r = 0; r < R; ++r) shares_[l * R + r] += u[r];
    }
    for (std::size_t r = 0; r < R; ++r) entered_[r] += shares_[l * R + r];
  }
}

const BankPredictor::Row& BankPredictor::row(std::int32_t layer, std::int32_t lag) const {
  return rows_[std::size_t(layer) * lags_ + std::size_t(lag)];
}

// The newest row moves in, the oldest one's memory is used for it.
void BankPredictor::take_row(std::int32_t layer, const Glimpse& glimpse, std::int32_t token) {
  Row* rows = rows_.data() + std::size_t(layer) * lags_;
  std::rotate(rows, rows + lags_ - 1, rows + lags_);
  Row& newest = rows[0];
  newest.experts.clear();
  newest.gates.clear();
  const std::size_t first = std::size_t(token) * glimpse.top_k;
  float sum = 0;
  for (std::int32_t k = 0; k < glimpse.top_k; ++k) {
    const std::int32_t id = glimpse.experts[first + k];
    const auto& known = newest.experts;
    if (id < 0 || id >= config_.geometry.experts_per_layer ||
        std::find(known.begin(), known.end(), id) != known.end()) {
      continue;
    }
    const float weight = glimpse.weights ? glimpse.weights[first + k] : 0;
    newest.experts.push_back(id);
    newest.gates.push_back(weight);
    sum += weight;
  }
  const float top_k = float(config_.geometry.top_k);
  const bool usable = sum > 0 && std::isfinite(sum);
  for (float& gate : newest.gates) gate = usable ? top_k * gate / sum : 1.0f;
}

void BankPredictor::decay_averages(std::int32_t layer) {
  const std::size_t L = layers(), E = experts(), R = rank();
  const std::size_t D = config_.decays.size(), B = config_.bank.size();
  const Row& newest = row(layer, 0);
  for (std::size_t d = 0; d < D; ++d) {
    const float decay = config_.decays[d];
    float* average = averages_.data() + (std::size_t(layer) * D + d) * E;
    for (std::size_t i = 0; i < E; ++i) average[i] *= decay;
    for (std::int32_t i : newest.experts) average[i] += 1 - decay;
  }
  for (std::size_t b = 0; b < B; ++b) {
    const float decay = config_.decays[std::size_t(config_.bank[b])];
    float* u = banks_.data() + (std::size_t(layer) * B + b) * R;
    for (std::size_t r = 0; r < R; ++r) u[r] *= decay;
    for (std::int32_t i : newest.experts) {
      const std::size_t at = ((b * L + std::size_t(layer)) * E + std::size_t(i)) * R;
      add_row_f16(weights_.enter_bank.data() + at, R, 1 - decay, wide_.data(), u);
    }
  }
}

// P[l] anew, and with it the entry of the network.
void BankPredictor::update_share(std::int32_t layer) {
  const std::size_t L = layers(), E = experts(), R = rank(), B = config_.bank.size();
  float* share = shares_.data() + std::size_t(layer) * R;
  std::fill(a_.begin(), a_.end(), 0.0f);
  for (std::size_t b = 0; b < B; ++b) {
    const float* u = banks_.data() + (std::size_t(layer) * B + b) * R;
    for (std::size_t r = 0; r < R; ++r) a_[r] += u[r];
  }
  for (std::size_t block = 0; block < config_.recent.size(); ++block) {
    const BankConfig::Recent& recent = config_.recent[block];
    const Row& source = row(layer, recent.lag);
    for (std::size_t k = 0; k < source.experts.size(); ++k) {
      const std::size_t at =
          ((block * L + std::size_t(layer)) * E + std::size_t(source.experts[k])) * R;
      add_row_f16(weights_.enter_recent.data() + at, R, recent.gate ? source.gates[k] : 1.0f,
                  wide_.data(), a_.data());
    }
  }
  if (layer == 0) {  // once a turn everything is summed afresh, against drift
    std::copy(a_.begin(), a_.end(), share);
    entered_ = weights_.enter_bias;
    for (std::size_t l = 0; l < L; ++l) {
      for (std::size_t r = 0; r < R; ++r) entered_[r] += shares_[l * R + r];
    }
    return;
  }
  for (std::size_t r = 0; r < R; ++r) {
    entered_[r] += a_[r] - share[r];
    share[r] = a_[r];
  }
}

void BankPredictor::update_hidden(const Glimpse& glimpse) {
  if (config_.hidden == 0) return;
  std::fill(hidden_.begin(), hidden_.end(), 0.0f);
  if (!glimpse.hidden) return;
  const std::size_t H = std::size_t(config_.hidden), R = rank();
  const float* x = glimpse.hidden;
  double square = 0;
  for (std::size_t h = 0; h < H; ++h) square += double(x[h]) * x[h];
  const float scale = 1 / std::sqrt(float(square / double(H)) + 1e-6f);
  const std::uint16_t* weight = weights_.enter_hidden.data() + std::size_t(glimpse.layer) * H * R;
  for (std::size_t h = 0; h < H; ++h) {
    add_row_f16(weight + h * R, R, x[h] * scale, wide_.data(), hidden_.data());
  }
}

void BankPredictor::run_network(std::int32_t layer) {
  const std::size_t R = rank();
  double sum = 0, square = 0;
  for (std::size_t r = 0; r < R; ++r) {
    a_[r] = entered_[r] + hidden_[r];
    sum += a_[r];
  }
  const float mean = float(sum / double(R));
  for (std::size_t r = 0; r < R; ++r) square += double(a_[r] - mean) * (a_[r] - mean);
  const float scale = 1 / std::sqrt(float(square / double(R)) + 1e-5f);
  const float* gain = weights_.norm_gain.data() + std::size_t(layer) * R;
  const float* bias = weights_.norm_bias.data() + std::size_t(layer) * R;
  for (std::size_t r = 0; r < R; ++r) {
    a_[r] = hardswish((a_[r] - mean) * scale * gain[r] + bias[r]);
  }
  if (weights_.mid_weight.empty()) {
    std::copy(a_.begin(), a_.end(), deep_.begin());
    return;
  }
  dot_rows_f16(weights_.mid_weight.data(), R, R, a_.data(), b_.data());
  for (std::size_t r = 0; r < R; ++r) {
    deep_[r] = a_[r] + hardswish(b_[r] + weights_.mid_bias[r]);
  }
}

void BankPredictor::observe(const Glimpse& glimpse) {
  const Geometry& g = config_.geometry;
  if (glimpse.layer < 0 || glimpse.layer >= g.layers || glimpse.tokens < 1 || glimpse.top_k < 0) {
    throw InvalidArgument("the predictor was trained for " + std::to_string(g.layers) +
                          " layers; layer " + std::to_string(glimpse.layer) + " is not among them");
  }
  for (std::int32_t t = std::max(0, glimpse.tokens - kRowsThatMatter); t < glimpse.tokens; ++t) {
    take_row(glimpse.layer, glimpse, t);
    decay_averages(glimpse.layer);
  }
  update_share(glimpse.layer);
  update_hidden(glimpse);
  run_network(glimpse.layer);
  seen_ = glimpse.layer;
}

bool BankPredictor::next_use(std::int32_t layer, std::span<float> gaps) {
  if (layer != seen_) throw StateError("next_use speaks of the layer that was observed last");
  const std::size_t E = experts(), R = rank(), D = config_.decays.size();
  const std::size_t M = std::size_t(config_.latents), N = std::size_t(config_.heads);
  const std::size_t l = std::size_t(layer), F = D > 0 ? D + 2 : 0;

  // Features [D + 2, E], so that each is one run of experts.
  features_.assign(F * E, 0.0f);
  if (D > 0) {
    const float* average = averages_.data() + l * D * E;
    for (std::size_t i = 0; i < D * E; ++i) features_[i] = average[i] + kLogShift;
    log_each(features_.data(), features_.data(), D * E);
    const Row &newest = row(layer, 0), &before = row(layer, 1);
    for (std::size_t k = 0; k < newest.experts.size(); ++k) {
      features_[D * E + std::size_t(newest.experts[k])] = newest.gates[k];
    }
    for (std::int32_t i : before.experts) features_[(D + 1) * E + std::size_t(i)] = 1;
  }
  outputs_.resize(M * E);
  dot_rows_f16(weights_.leave_weight.data() + l * M * E * R, M * E, R, deep_.data(),
               outputs_.data());
  const float* leave_bias = weights_.leave_bias.data() + l * M * E;
  for (std::size_t i = 0; i < M * E; ++i) outputs_[i] += leave_bias[i];

  logits_.assign(weights_.own_bias.begin() + std::ptrdiff_t(l * N * E),
                 weights_.own_bias.begin() + std::ptrdiff_t((l + 1) * N * E));
  for (std::size_t n = 0; n < N; ++n) {
    float* logit = logits_.data() + n * E;
    for (std::size_t f = 0; f < F; ++f) {
      const float weight = weights_.own_weight[(l * N + n) * F + f];
      const float* feature = features_.data() + f * E;
      for (std::size_t i = 0; i < E; ++i) logit[i] += weight * feature[i];
    }
    for (std::size_t m = 0; m < M; ++m) {
      const float mix = weights_.leave_mix[n * M + m];
      const float* output = outputs_.data() + m * E;
      for (std::size_t i = 0; i < E; ++i) logit[i] += mix * output[i];
    }
  }
  std::copy_n(logits_.begin(), E, raw_.begin() + std::ptrdiff_t(l * E));

  const float* weight = weights_.gap_weight.data() + std::size_t(config_.limit) * (1 + N);
  std::fill(gaps.begin(), gaps.end(), weight[0]);
  for (std::size_t n = 0; n < N; ++n) {
    float* logit = logits_.data() + n * E;
    const float scale = weights_.next_scale[l * N + n];
    // 1 - sigmoid(v) = sigmoid(-v): the chance that it is not used within this head's turns.
    for (std::size_t i = 0; i < E; ++i) logit[i] *= -scale;
    sigmoid_each(logit, logit, E);
    for (std::size_t i = 0; i < E; ++i) gaps[i] += weight[1 + n] * logit[i];
  }
  for (float& gap : gaps) gap = std::max(gap, 1.0f);
  return true;
}

void BankPredictor::forecast(std::int32_t layer, std::vector<Forecast>& out) {
  if (layer != seen_) throw StateError("forecast speaks of the layer that was observed last");
  const std::size_t L = layers(), E = experts(), R = rank();
  for (std::int32_t f = 1; f <= config_.ahead && layer + f < config_.geometry.layers; ++f) {
    const std::size_t j = std::size_t(layer + f), at = std::size_t(f - 1) * L + j;
    logits_.resize(E);
    dot_rows_f16(weights_.ahead_weight.data() + at * E * R, E, R, deep_.data(), logits_.data());
    const float prior = weights_.ahead_prior[at], scale = weights_.ahead_scale[at];
    for (std::size_t i = 0; i < E; ++i) {
      logits_[i] += prior * raw_[j * E + i] + weights_.ahead_bias[at * E + i];
    }
    if (config_.pair) {
      if (wide_.size() < E) wide_.resize(E);
      for (std::int32_t i : row(layer, 0).experts) {
        add_row_f16(weights_.ahead_pair.data() + (at * E + std::size_t(i)) * E, E, 1.0f,
                    wide_.data(), logits_.data());
      }
    }
    for (float& logit : logits_) logit *= scale;
    sigmoid_each(logits_.data(), logits_.data(), E);
    for (std::size_t i = 0; i < E; ++i) {
      out.push_back({{std::int32_t(j), std::int32_t(i)}, logits_[i], f});
    }
  }
}

}  // namespace prophet
