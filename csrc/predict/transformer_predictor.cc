#include "predict/transformer_predictor.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "core/error.h"

namespace prophet {
namespace {

constexpr std::size_t kParts = 3;  // query, key, value

// to[i] = a[i] + b[i].
void add_up(const float* a, const float* b, std::size_t n, float* to) {
  for (std::size_t i = 0; i < n; ++i) to[i] = a[i] + b[i];
}

}  // namespace

TransformerPredictor::TransformerPredictor(std::shared_ptr<const TransformerNetwork> network)
    : network_(std::move(network)), own_(network_->config().geometry, network_->config().decays) {
  const TransformerConfig& c = network_->config();
  const std::size_t rows = c.hidden > 0 ? 1 : std::size_t(kMostRows);
  const std::size_t most = rows * (std::size_t(c.context) + 1), C = network_->columns();
  sets_.resize(std::size_t(c.context));
  x_.resize(most * C);
  normed_.resize(most * C);
  read_.resize(most * kParts * network_->attended());
  attended_.resize(most * network_->attended());
  inner_.resize(most * network_->inner());
  more_.resize(most * C);
  deep_.resize(rows * C);
  turned_.resize(rows * C);
  outputs_.resize(std::max(network_->leaves() + network_->lanes(), rows * network_->lanes()));
  raw_.resize(network_->lanes());
  zeros_.resize(network_->lanes());
  gaps_.resize(network_->lanes());
  p_.resize(network_->lanes());
  idle_.resize(network_->lanes());
  hidden_.resize(network_->read_columns());
}

void TransformerPredictor::reset() {
  own_.reset();
  for (Sets& sets : sets_) sets.layer = -1;
  seen_ = -1;
}

void TransformerPredictor::observe(const Glimpse& glimpse) {
  const TransformerConfig& c = network_->config();
  if (glimpse.layer < 0 || glimpse.layer >= c.geometry.layers || glimpse.tokens < 1 ||
      glimpse.top_k < 0) {
    throw InvalidArgument("the predictor was trained for " + std::to_string(c.geometry.layers) +
                          " layers; layer " + std::to_string(glimpse.layer) + " with " +
                          std::to_string(glimpse.tokens) + " tokens is not among them");
  }
  if (glimpse.layer <= seen_) {  // another pass
    for (Sets& sets : sets_) sets.layer = -1;
  }
  seen_ = glimpse.layer;
  rows_ = c.hidden > 0 ? 1 : std::size_t(std::min(glimpse.tokens, kMostRows));
  positions_ = 0;
  own_.observe(glimpse);
  if (c.history) {
    take_sets(glimpse);
    enter_sets(glimpse.layer);
  }
  if (c.hidden > 0) enter_hidden(glimpse);
  for (std::size_t b = 0; b < network_->blocks().size(); ++b) {
    run_block(network_->blocks()[b], b + 1 == network_->blocks().size());
  }
  const std::size_t first = (positions_ - 1) * rows_, C = network_->columns();
  norm(network_->norm_gain, network_->norm_bias, first);
  std::copy_n(normed_.begin() + std::ptrdiff_t(first * C), rows_ * C, deep_.begin());
}

void TransformerPredictor::take_sets(const Glimpse& glimpse) {
  const std::size_t C = network_->columns(), layer = std::size_t(glimpse.layer);
  Sets& sets = sets_[layer % sets_.size()];
  sets.layer = glimpse.layer;
  sets.rows = rows_;
  sets.sums.resize(rows_ * C);
  for (std::size_t r = 0; r < rows_; ++r) {
    own_.read(glimpse, glimpse.tokens - std::int32_t(rows_ - r), row_);
    sources_.clear();
    scales_.clear();
    for (std::size_t k = 0; k < row_.experts.size(); ++k) {
      sources_.push_back(network_->entry(layer, std::size_t(row_.experts[k])));
      scales_.push_back(row_.gates[k] / float(network_->config().geometry.top_k));
    }
    RowSum sum;
    sum.rows = sources_.data();
    sum.scales = scales_.data();
    sum.count = sources_.size();
    sum.y = sets.sums.data() + r * C;
    sum.n = C;
    std::copy_n(network_->layer.data() + layer * C, C, sum.y);
    predictor_kernels().add_rows(sum);
  }
}

// From the oldest layer to the newest; what this pass has not seen is a pad.
void TransformerPredictor::enter_sets(std::int32_t layer) {
  const std::size_t C = network_->columns();
  for (std::int32_t back = network_->config().context - 1; back >= 0; --back, ++positions_) {
    const std::int32_t from = layer - back;
    const Sets* sets = from < 0 ? nullptr : &sets_[std::size_t(from) % sets_.size()];
    const bool known = sets && sets->layer == from && sets->rows == rows_;
    const float* place = network_->place.data() + std::size_t(back) * C;
    for (std::size_t r = 0; r < rows_; ++r) {
      const float* set = known ? sets->sums.data() + r * C : network_->pad.data() + back * C;
      add_up(set, place, C, x_.data() + (positions_ * rows_ + r) * C);
    }
  }
}

void TransformerPredictor::enter_hidden(const Glimpse& glimpse) {
  const std::size_t C = network_->columns(), H = std::size_t(network_->config().hidden);
  std::fill(hidden_.begin(), hidden_.end(), 0.0f);
  double square = 0;
  for (std::size_t h = 0; glimpse.hidden && h < H; ++h) {
    square += double(glimpse.hidden[h]) * glimpse.hidden[h];
  }
  if (glimpse.hidden && std::isfinite(square)) {
    const float scale = 1 / std::sqrt(float(square / double(H)) + 1e-6f);
    for (std::size_t h = 0; h < H; ++h) hidden_[h] = scale * glimpse.hidden[h];
  }
  float* x = x_.data() + positions_ * C;
  predictor_kernels().dot_tiles_f16(network_->project(), C, hidden_.size(), hidden_.data(), x);
  const std::size_t last = std::size_t(network_->config().context);
  add_up(x, network_->project_bias.data(), C, x);
  add_up(x, network_->layer.data() + std::size_t(glimpse.layer) * C, C, x);
  add_up(x, network_->place.data() + last * C, C, x);
  ++positions_;
}

// Vectors of x_ from `first` on, normalised.
void TransformerPredictor::norm(const std::vector<float>& gain, const std::vector<float>& bias,
                                std::size_t first) {
  const std::size_t C = network_->columns();
  Normalise call;
  call.gain = gain.data();
  call.bias = bias.data();
  call.used = std::size_t(network_->config().width);
  call.n = C;
  for (std::size_t i = first; i < positions_ * rows_; ++i) {
    call.first = x_.data() + i * C;
    call.out = normed_.data() + i * C;
    predictor_kernels().layer_norm(call);
  }
}

// y = matrix * x for vectors from `first` on.
void TransformerPredictor::multiply(const std::uint16_t* tiles, std::size_t n,
                                    const std::vector<float>& x, std::size_t columns,
                                    std::size_t first, float* y, std::size_t y_stride) {
  Products call;
  call.tiles = tiles;
  call.n = n;
  call.columns = columns;
  call.x = x.data() + first * columns;
  call.x_stride = columns;
  call.y = y + first * y_stride;
  call.y_stride = y_stride;
  call.rows = positions_ * rows_ - first;
  predictor_kernels().products(call);
}

// What a part of a block has made joins the state.
void TransformerPredictor::add(const std::vector<float>& bias, std::size_t first) {
  const std::size_t C = network_->columns();
  for (std::size_t i = first; i < positions_ * rows_; ++i) {
    float* x = x_.data() + i * C;
    add_up(x, more_.data() + i * C, C, x);
    add_up(x, bias.data(), C, x);
  }
}

// Of the last block only the last position is asked for.
void TransformerPredictor::run_block(const TransformerNetwork::Block& block, bool last) {
  const std::size_t C = network_->columns(), T = network_->attended(), U = network_->inner();
  const std::size_t all = positions_ * rows_, first = last ? all - rows_ : 0, width = kParts * T;
  const TransformerConfig& c = network_->config();
  norm(block.enter_gain, block.enter_bias, 0);
  multiply(block.read, T, normed_, C, first, read_.data(), width);
  multiply(block.read + T * C, 2 * T, normed_, C, 0, read_.data() + T, width);
  for (std::size_t i = 0; i < all; ++i) {
    float* read = read_.data() + i * width;
    add_up(read, block.read_bias.data(), width, read);
  }
  Attend call;
  call.stride = rows_ * width;
  call.out_stride = rows_ * T;
  call.queries = last ? 1 : positions_;
  call.positions = positions_;
  call.heads = std::size_t(c.attention_heads);
  call.head_n = network_->head_columns();
  call.scale = 1 / std::sqrt(float(c.width / c.attention_heads));
  for (std::size_t r = 0; r < rows_; ++r) {
    call.query = read_.data() + (first + r) * width;
    call.key = read_.data() + r * width + T;
    call.value = call.key + T;
    call.out = attended_.data() + (first + r) * T;
    predictor_kernels().attend(call);
  }
  multiply(block.merge, C, attended_, T, first, more_.data(), C);
  add(block.merge_bias, first);
  norm(block.middle_gain, block.middle_bias, first);
  multiply(block.up, U, normed_, C, first, inner_.data(), U);
  for (std::size_t i = first; i < all; ++i) {
    float* inner = inner_.data() + i * U;
    predictor_kernels().gelu(inner, block.up_bias.data(), inner, U);
  }
  multiply(block.down, C, inner_, U, first, more_.data(), C);
  add(block.down_bias, first);
}

bool TransformerPredictor::next_use(std::int32_t layer, std::span<float> gaps) {
  if (layer != seen_) throw StateError("next_use speaks of the layer that was observed last");
  const TransformerConfig& c = network_->config();
  const std::size_t E = network_->lanes(), l = std::size_t(layer), N = std::size_t(c.heads);
  const PredictorKernels& kernels = predictor_kernels();
  kernels.dot_tiles_f16(network_->use(l), network_->leaves(), network_->columns(),
                        deep_.data() + (rows_ - 1) * network_->columns(), outputs_.data());
  Heads call;
  own_.describe(layer, call);
  call.latents = N;
  call.heads = N;
  call.outputs = outputs_.data();
  call.latent_stride = network_->experts();
  call.own_weight = network_->own_weight.data() + l * N * (call.averages_count + call.more_count);
  call.own_bias = network_->own_bias.data() + l * N * E;
  call.mix = network_->mix.data();
  call.scale = network_->next_scale.data() + l * N;
  call.gap_weight = network_->gap_weight.data() + std::size_t(c.limit) * (1 + N);
  call.raw = raw_.data();
  call.gaps = gaps_.data();
  call.n = E;
  kernels.heads(call);
  std::copy_n(gaps_.begin(), gaps.size(), gaps.begin());
  return true;
}

std::int32_t TransformerPredictor::horizons(std::int32_t layer) const {
  return std::min(network_->config().ahead, network_->config().geometry.layers - 1 - layer);
}

// Fills p_.
void TransformerPredictor::look_ahead(std::int32_t layer, std::int32_t horizon) {
  if (layer != seen_) throw StateError("forecast speaks of the layer that was observed last");
  const std::size_t f = std::size_t(horizon), j = std::size_t(layer) + f;
  const std::size_t at = (f - 1) * network_->layers() + j, E = network_->lanes();
  const std::size_t C = network_->columns();
  const PredictorKernels& kernels = predictor_kernels();
  Products call;
  call.columns = C;
  call.x_stride = C;
  call.rows = rows_;
  call.tiles = network_->horizon(f);
  call.n = call.y_stride = C;
  call.x = deep_.data();
  call.y = turned_.data();
  kernels.products(call);
  call.tiles = network_->ahead(j);
  call.n = call.y_stride = E;
  call.x = turned_.data();
  call.y = outputs_.data();
  kernels.products(call);
  Ahead each;
  each.raw = zeros_.data();
  each.bias = network_->ahead_bias.data() + at * E;
  each.scale = network_->ahead_scale[at];
  each.p = p_.data();
  each.n = E;
  std::fill(idle_.begin(), idle_.end(), 1.0f);
  for (std::size_t r = 0; r < rows_; ++r) {
    each.dots = outputs_.data() + r * E;
    kernels.ahead(each);
    if (rows_ == 1) return;
    for (std::size_t i = 0; i < E; ++i) idle_[i] *= 1 - p_[i];
  }
  for (std::size_t i = 0; i < E; ++i) p_[i] = 1 - idle_[i];
}

void TransformerPredictor::probabilities(std::int32_t layer, std::int32_t horizon,
                                         std::span<float> p) {
  look_ahead(layer, horizon);
  std::copy_n(p_.begin(), p.size(), p.begin());
}

void TransformerPredictor::forecast(std::int32_t layer, std::vector<Forecast>& out) {
  if (layer != seen_) throw StateError("forecast speaks of the layer that was observed last");
  for (std::int32_t f = 1; f <= horizons(layer); ++f) {
    look_ahead(layer, f);
    for (std::size_t i = 0; i < network_->experts(); ++i) {
      if (p_[i] < kLeastForecast) continue;
      out.push_back({{layer + f, std::int32_t(i)}, p_[i], f});
    }
  }
  // The layer's own next turn: the first head, whose logits `next_use` has left behind.
  const TransformerConfig& c = network_->config();
  const float scale = network_->next_scale[std::size_t(layer) * std::size_t(c.heads)];
  for (std::size_t i = 0; i < network_->experts(); ++i) {
    const float p = 1 / (1 + std::exp(-scale * raw_[i]));
    if (p < kLeastForecast) continue;
    out.push_back({{layer, std::int32_t(i)}, p, c.geometry.layers});
  }
}

}  // namespace prophet
