#include "predict/bank_predictor.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "core/error.h"
#include "kernels/predictor_math.h"

namespace prophet {
namespace {

constexpr std::int32_t kRowsThatMatter = 1024;  // older ones of a step have faded
constexpr float kLogShift = 0.004f;
constexpr std::size_t kFirstBytes = 4096;  // of a table, asked for before its turn

inline float hardswish(float v) { return v * std::min(std::max(v + 3, 0.0f), 6.0f) / 6; }

}  // namespace

BankPredictor::BankPredictor(std::shared_ptr<const BankNetwork> network)
    : network_(std::move(network)) {
  const BankConfig& c = network_->config();
  const std::size_t D = c.decays.size(), E = network_->experts(), R = network_->columns();
  for (const BankConfig::Recent& recent : c.recent) {
    lags_ = std::max(lags_, std::size_t(recent.lag) + 1);
  }
  average_size_ = D * network_->lanes();
  share_size_ = (network_->banks() + 1) * R;
  keep_.resize(D);
  gains_.assign(E * D, 0);
  chosen_.assign(E, 0);
  fresh_.resize(R);
  middle_.resize(R);
  outputs_.assign(network_->leaves() + network_->lanes(), 0);
  more_.assign(2 * network_->lanes(), 0);
  gaps_.resize(network_->lanes());
  p_.resize(network_->lanes());
  scratch_.resize((D + 2) * kPredictorLanes);
  reset();
}

void BankPredictor::reset() {
  const BankConfig& c = network_->config();
  const std::size_t L = network_->layers(), B = network_->banks(), R = network_->columns();
  const float chance = float(c.geometry.top_k) / float(network_->experts());
  averages_.assign(L * average_size_, chance);
  shares_.assign(L * share_size_, 0);
  for (std::size_t l = 0; l < L; ++l) {
    std::copy_n(network_->first_banks.data() + l * B * R, B * R, banks(l));
    for (std::size_t b = 0; b < B; ++b) {
      for (std::size_t r = 0; r < R; ++r) share(l)[r] += banks(l)[b * R + r];
    }
  }
  raw_.assign(L * network_->lanes(), chance < 1 ? std::log(chance / (1 - chance)) : 16.0f);
  rows_.assign(L * lags_, {});
  entered_ = network_->enter_bias;
  for (std::size_t l = 0; l < L; ++l) {
    for (std::size_t r = 0; r < R; ++r) entered_[r] += share(l)[r];
  }
  hidden_.assign(R, 0);
  deep_.assign(R, 0);
  seen_ = -1;
}

void BankPredictor::read_row(const Glimpse& glimpse, std::int32_t token, Row& row) const {
  row.experts.clear();
  row.gates.clear();
  const Geometry& g = network_->config().geometry;
  const std::size_t first = std::size_t(token) * std::size_t(glimpse.top_k);
  float sum = 0;
  for (std::int32_t k = 0; k < glimpse.top_k; ++k) {
    const std::int32_t id = glimpse.experts[first + std::size_t(k)];
    if (id < 0 || id >= g.experts_per_layer ||
        std::find(row.experts.begin(), row.experts.end(), id) != row.experts.end()) {
      continue;
    }
    const float weight = glimpse.weights ? glimpse.weights[first + std::size_t(k)] : 0;
    row.experts.push_back(id);
    row.gates.push_back(weight);
    sum += weight;
  }
  const bool usable = sum > 0 && std::isfinite(sum);
  for (float& gate : row.gates) gate = usable ? float(g.top_k) * gate / sum : 1.0f;
}

// From the newest row to the oldest, so that each row's weight in the averages is known.
void BankPredictor::take_rows(const Glimpse& glimpse) {
  const std::size_t D = keep_.size();
  const std::size_t layer = std::size_t(glimpse.layer);
  const std::size_t count = std::size_t(std::min(glimpse.tokens, kRowsThatMatter));
  const auto rows = rows_.begin() + std::ptrdiff_t(layer * lags_);
  std::rotate(rows, rows + std::ptrdiff_t(lags_ - std::min(count, lags_)),
              rows + std::ptrdiff_t(lags_));
  std::fill(keep_.begin(), keep_.end(), 1.0f);
  for (std::size_t depth = 0; depth < count; ++depth) {
    Row& next = depth < lags_ ? row(layer, depth) : spare_;
    read_row(glimpse, glimpse.tokens - 1 - std::int32_t(depth), next);
    if (depth == 0) fetch(layer);
    for (std::int32_t i : next.experts) {
      float* gain = gains_.data() + std::size_t(i) * D;
      if (!std::exchange(chosen_[std::size_t(i)], 1)) gained_.push_back(i);
      for (std::size_t d = 0; d < D; ++d) {
        gain[d] += (1 - network_->config().decays[d]) * keep_[d];
      }
    }
    for (std::size_t d = 0; d < D; ++d) keep_[d] *= network_->config().decays[d];
  }
}

// Everything that `observe` is about to read, asked for at once: it lies in many places.
void BankPredictor::fetch(std::size_t layer) const {
  const std::size_t R = network_->columns();
  for (std::int32_t i : rows_[layer * lags_].experts) {
    prefetch(network_->entries(layer, std::size_t(i)), network_->blocks() * R * 2);
  }
  prefetch(shares_.data() + layer * share_size_, share_size_ * sizeof(float));
  prefetch(averages_.data() + layer * average_size_, average_size_ * sizeof(float));
  prefetch(network_->norm_gain.data() + layer * R, R * sizeof(float));
  prefetch(network_->norm_bias.data() + layer * R, R * sizeof(float));
}

void BankPredictor::update_averages(std::size_t layer) {
  const std::size_t D = keep_.size(), E = network_->lanes(), R = network_->columns();
  const PredictorKernels& kernels = predictor_kernels();
  for (std::size_t d = 0; d < D; ++d) {
    float* average = averages(layer) + d * E;
    kernels.fade(keep_[d], average, E);
    for (std::int32_t i : gained_) average[i] += gains_[std::size_t(i) * D + d];
  }
  std::fill(fresh_.begin(), fresh_.end(), 0.0f);
  scales_.resize(gained_.size());
  sources_.resize(gained_.size());
  for (std::size_t b = 0; b < network_->banks(); ++b) {
    const std::size_t d = std::size_t(network_->config().bank[b]);
    for (std::size_t k = 0; k < gained_.size(); ++k) {
      const std::size_t i = std::size_t(gained_[k]);
      scales_[k] = gains_[i * D + d];
      sources_[k] = network_->entries(layer, i) + b * R;
    }
    RowSum sum;
    sum.rows = sources_.data();
    sum.scales = scales_.data();
    sum.count = gained_.size();
    sum.keep = keep_[d];
    sum.y = banks(layer) + b * R;
    sum.total = fresh_.data();
    sum.n = R;
    kernels.add_rows(sum);
  }
  for (std::int32_t i : gained_) {
    std::fill_n(gains_.data() + std::size_t(i) * D, D, 0.0f);
    chosen_[std::size_t(i)] = 0;
  }
  gained_.clear();
}

// P[l] anew, and with it the entry of the network.
void BankPredictor::update_share(std::size_t layer) {
  const std::size_t R = network_->columns();
  const std::vector<BankConfig::Recent>& recent = network_->config().recent;
  scales_.clear();
  sources_.clear();
  for (std::size_t block = 0; block < recent.size(); ++block) {
    const Row& source = row(layer, std::size_t(recent[block].lag));
    for (std::size_t k = 0; k < source.experts.size(); ++k) {
      scales_.push_back(recent[block].gate ? source.gates[k] : 1.0f);
      sources_.push_back(network_->entries(layer, std::size_t(source.experts[k])) +
                         (network_->banks() + block) * R);
    }
  }
  RowSum sum;
  sum.rows = sources_.data();
  sum.scales = scales_.data();
  sum.count = sources_.size();
  sum.y = fresh_.data();
  sum.n = R;
  predictor_kernels().add_rows(sum);
  predictor_kernels().exchange(fresh_.data(), share(layer), entered_.data(), R);
  if (layer > 0) return;
  entered_ = network_->enter_bias;  // once a turn everything is summed afresh, against drift
  for (std::size_t l = 0; l < network_->layers(); ++l) {
    const float* kept = share(l);
    for (std::size_t r = 0; r < R; ++r) entered_[r] += kept[r];
  }
}

void BankPredictor::update_hidden(const Glimpse& glimpse) {
  const std::size_t H = std::size_t(network_->config().hidden), R = network_->columns();
  if (H == 0) return;
  std::fill(hidden_.begin(), hidden_.end(), 0.0f);
  if (!glimpse.hidden) return;
  const float* x = glimpse.hidden;
  double square = 0;
  for (std::size_t h = 0; h < H; ++h) square += double(x[h]) * x[h];
  if (!std::isfinite(square)) return;  // the router read numbers that are none: as good as nothing
  const float scale = 1 / std::sqrt(float(square / double(H)) + 1e-6f);
  const std::uint16_t* rows = network_->hidden(std::size_t(glimpse.layer));
  constexpr std::size_t kRows = 16;  // a run of rows at a time: one ascending stream
  const std::uint16_t* sources[kRows];
  float scales[kRows];
  for (std::size_t h = 0; h < H; h += kRows) {
    const std::size_t count = std::min(kRows, H - h);
    for (std::size_t k = 0; k < count; ++k) {
      sources[k] = rows + (h + k) * R;
      scales[k] = x[h + k] * scale;
    }
    RowSum sum;
    sum.rows = sources;
    sum.scales = scales;
    sum.count = count;
    sum.y = hidden_.data();
    sum.n = R;
    predictor_kernels().add_rows(sum);
  }
}

void BankPredictor::run_network(std::size_t layer) {
  const std::size_t R = network_->columns();
  Normalise call;
  call.first = entered_.data();
  call.second = network_->config().hidden > 0 ? hidden_.data() : nullptr;
  call.gain = network_->norm_gain.data() + layer * R;
  call.bias = network_->norm_bias.data() + layer * R;
  call.out = deep_.data();
  call.used = std::size_t(network_->config().rank);
  call.n = R;
  predictor_kernels().normalise(call);
  if (!network_->has_middle()) return;
  predictor_kernels().dot_tiles_f16(network_->middle(), R, R, deep_.data(), middle_.data());
  for (std::size_t r = 0; r < R; ++r) deep_[r] += hardswish(middle_[r] + network_->mid_bias[r]);
}

void BankPredictor::observe(const Glimpse& glimpse) {
  const Geometry& g = network_->config().geometry;
  if (glimpse.layer < 0 || glimpse.layer >= g.layers || glimpse.tokens < 1 || glimpse.top_k < 0) {
    throw InvalidArgument("the predictor was trained for " + std::to_string(g.layers) +
                          " layers; layer " + std::to_string(glimpse.layer) + " with " +
                          std::to_string(glimpse.tokens) + " tokens is not among them");
  }
  const std::size_t layer = std::size_t(glimpse.layer);
  seen_ = glimpse.layer;
  told_.clear();
  if (glimpse.told) {
    const std::size_t rows = 2 + std::size_t(network_->config().ahead);
    told_.assign(glimpse.told, glimpse.told + rows * network_->experts());
    return;
  }
  take_rows(glimpse);
  update_averages(layer);
  prefetch(network_->leave(layer), network_->config().latents > 0 ? kFirstBytes : 0);
  update_share(layer);
  update_hidden(glimpse);
  run_network(layer);
}

bool BankPredictor::next_use(std::int32_t layer, std::span<float> gaps) {
  if (layer != seen_) throw StateError("next_use speaks of the layer that was observed last");
  if (!told_.empty()) {
    std::copy_n(told_.begin(), gaps.size(), gaps.begin());
    return true;
  }
  const BankConfig& c = network_->config();
  const std::size_t E = network_->lanes(), l = std::size_t(layer);
  const std::size_t D = c.decays.size(), N = std::size_t(c.heads);
  const PredictorKernels& kernels = predictor_kernels();
  kernels.dot_tiles_f16(network_->leave(l), network_->leaves(), network_->columns(), deep_.data(),
                        outputs_.data());
  for (std::int32_t f = 1; f <= horizons(layer); ++f) {
    prefetch(network_->ahead(std::size_t(f), l + std::size_t(f)), kFirstBytes);
  }
  const Row &newest = row(l, 0), &before = row(l, 1);
  for (std::size_t k = 0; k < newest.experts.size(); ++k) {
    more_[std::size_t(newest.experts[k])] = newest.gates[k];
  }
  for (std::int32_t i : before.experts) more_[E + std::size_t(i)] = 1;
  Heads call;
  call.averages_count = D;
  call.more_count = D > 0 ? 2 : 0;
  call.latents = std::size_t(c.latents);
  call.heads = N;
  call.averages = averages(l);
  call.shift = kLogShift;
  call.more = more_.data();
  call.outputs = outputs_.data();
  call.latent_stride = network_->experts();
  call.own_weight = network_->own_weight.data() + (D > 0 ? l * N * (D + 2) : 0);
  call.own_bias = network_->own_bias.data() + l * N * E;
  call.mix = network_->leave_mix.data();
  call.scale = network_->next_scale.data() + l * N;
  call.gap_weight = network_->gap_weight.data() + std::size_t(c.limit) * (1 + N);
  call.scratch = scratch_.data();
  call.raw = raw(l);
  call.gaps = gaps_.data();
  call.n = E;
  kernels.heads(call);
  std::copy_n(gaps_.begin(), gaps.size(), gaps.begin());
  for (std::int32_t i : newest.experts) more_[std::size_t(i)] = 0;
  for (std::int32_t i : before.experts) more_[E + std::size_t(i)] = 0;
  return true;
}

std::int32_t BankPredictor::horizons(std::int32_t layer) const {
  return std::min(network_->config().ahead, network_->config().geometry.layers - 1 - layer);
}

// Fills p_.
void BankPredictor::look_ahead(std::int32_t layer, std::int32_t horizon) {
  if (layer != seen_) throw StateError("forecast speaks of the layer that was observed last");
  if (!told_.empty()) {
    const auto row = told_.begin() + std::ptrdiff_t((1 + horizon) * network_->experts());
    std::copy_n(row, network_->experts(), p_.begin());
    return;
  }
  const std::size_t l = std::size_t(layer), f = std::size_t(horizon), j = l + f;
  const std::size_t at = (f - 1) * network_->layers() + j, E = network_->lanes();
  sources_.clear();
  for (std::size_t back = 0; back < std::size_t(network_->config().pairs) && back <= l; ++back) {
    for (std::int32_t i : row(l - back, 0).experts) {
      sources_.push_back(network_->pair(back, f, j, std::size_t(i)));
      prefetch(sources_.back(), E * 2);
    }
  }
  const PredictorKernels& kernels = predictor_kernels();
  kernels.dot_tiles_f16(network_->ahead(f, j), E, network_->columns(), deep_.data(),
                        outputs_.data());
  Ahead call;
  call.dots = outputs_.data();
  call.raw = raw(j);
  call.bias = network_->ahead_bias.data() + at * E;
  call.pairs = sources_.data();
  call.pair_count = sources_.size();
  call.prior = network_->ahead_prior[at];
  call.scale = network_->ahead_scale[at];
  call.p = p_.data();
  call.n = E;
  kernels.ahead(call);
}

void BankPredictor::probabilities(std::int32_t layer, std::int32_t horizon, std::span<float> p) {
  look_ahead(layer, horizon);
  std::copy_n(p_.begin(), p.size(), p.begin());
}

void BankPredictor::forecast(std::int32_t layer, std::vector<Forecast>& out) {
  for (std::int32_t f = 1; f <= horizons(layer); ++f) {
    look_ahead(layer, f);
    add_likely(layer + f, f, out);
  }
  // The layer's own next turn: the first head, whose logits `next_use` has left behind.
  const BankConfig& c = network_->config();
  const float scale = network_->next_scale[std::size_t(layer) * std::size_t(c.heads)];
  const float* logits = raw(std::size_t(layer));
  for (std::size_t i = 0; i < network_->experts(); ++i) {
    p_[i] = told_.empty() ? 1 / (1 + std::exp(-scale * logits[i])) : told_[network_->experts() + i];
  }
  add_likely(layer, c.geometry.layers, out);
}

void BankPredictor::add_likely(std::int32_t layer, std::int32_t horizon,
                               std::vector<Forecast>& out) const {
  for (std::size_t i = 0; i < network_->experts(); ++i) {
    if (p_[i] >= kLeastForecast) out.push_back({{layer, std::int32_t(i)}, p_[i], horizon});
  }
}

}  // namespace prophet
