#include "predict/transformer_network.h"

#include <algorithm>
#include <string>
#include <utility>

#include "core/error.h"
#include "kernels/predictor_math.h"

namespace prophet {
namespace {

constexpr std::size_t kParts = 3;  // query, key, value

// Row `at` of [rows, n], padded.
std::vector<float> padded_row(const std::vector<float>& from, std::size_t at, std::size_t n,
                              std::size_t padded) {
  std::vector<float> out(padded, 0.0f);
  std::copy_n(from.data() + at * n, n, out.data());
  return out;
}

}  // namespace

TransformerNetwork::TransformerNetwork(TransformerConfig config, const TransformerWeights& weights)
    : config_(std::move(config)) {
  check(weights);
  const std::size_t d = std::size_t(config_.width), A = std::size_t(config_.attention_heads);
  columns_ = pad_to_lanes(d);
  head_ = pad_to_lanes(d / A);
  attended_ = A * head_;
  inner_ = pad_to_lanes(4 * d);
  reading_ = pad_to_lanes(std::size_t(config_.hidden));
  lanes_ = pad_to_lanes(experts());
  leaves_ = pad_to_lanes(std::size_t(config_.heads) * experts());
  blocks_.resize(std::size_t(config_.depth));
  take_floats(weights);
  take_halves(weights);
}

void TransformerNetwork::check(const TransformerWeights& w) const {
  const TransformerConfig& c = config_;
  const Geometry& g = c.geometry;
  if (g.layers < 1 || g.experts_per_layer < 1 || g.top_k < 1 || c.width < 1 || c.depth < 1 ||
      c.attention_heads < 1 || c.heads < 1 || c.ahead < 0 || c.hidden < 0 || c.limits < 1) {
    throw InvalidArgument("the predictor's configuration has a size below its least");
  }
  if (c.width % c.attention_heads != 0) {
    throw InvalidArgument("the predictor's width of " + std::to_string(c.width) +
                          " does not divide into " + std::to_string(c.attention_heads) +
                          " attention heads");
  }
  if (c.context < 1 || std::size_t(c.context) >= kMostPositions) {
    throw InvalidArgument("the predictor reads " + std::to_string(c.context) +
                          " layers of a token; 1 to " + std::to_string(kMostPositions - 1) +
                          " can be");
  }
  if (!c.history && c.hidden == 0) {
    throw InvalidArgument("the predictor reads neither routing nor hidden states");
  }
  if (c.limit < 0 || c.limit >= c.limits) {
    throw InvalidArgument("the predictor has " + std::to_string(c.limits) +
                          " limits of the gap, number " + std::to_string(c.limit) +
                          " is not among them");
  }
  for (float decay : c.decays) {
    if (!(decay > 0 && decay < 1)) {
      throw InvalidArgument("the predictor has a decay that is not between 0 and 1");
    }
  }
  const std::size_t L = layers(), E = experts(), d = std::size_t(c.width), B = std::size_t(c.depth),
                    C = std::size_t(c.context), H = std::size_t(c.hidden), N = std::size_t(c.heads),
                    F = std::size_t(c.ahead), D = c.decays.size();
#define PROPHET_CHECK(name, size) require_tensor(#name, w.name, size)
  PROPHET_CHECK(expert, L * E * d);
  PROPHET_CHECK(layer, L * d);
  PROPHET_CHECK(pad, C * d);
  PROPHET_CHECK(place, (C + 1) * d);
  PROPHET_CHECK(project_weight, H * d);
  PROPHET_CHECK(project_bias, H > 0 ? d : 0);
  PROPHET_CHECK(enter_gain, B * d);
  PROPHET_CHECK(enter_bias, B * d);
  PROPHET_CHECK(read_weight, B * kParts * d * d);
  PROPHET_CHECK(read_bias, B * kParts * d);
  PROPHET_CHECK(merge_weight, B * d * d);
  PROPHET_CHECK(merge_bias, B * d);
  PROPHET_CHECK(middle_gain, B * d);
  PROPHET_CHECK(middle_bias, B * d);
  PROPHET_CHECK(up_weight, B * 4 * d * d);
  PROPHET_CHECK(up_bias, B * 4 * d);
  PROPHET_CHECK(down_weight, B * 4 * d * d);
  PROPHET_CHECK(down_bias, B * d);
  PROPHET_CHECK(norm_gain, d);
  PROPHET_CHECK(norm_bias, d);
  PROPHET_CHECK(use_weight, L * N * E * d);
  PROPHET_CHECK(own_weight, D > 0 ? L * N * (D + 2) : 0);
  PROPHET_CHECK(own_bias, L * N * E);
  PROPHET_CHECK(next_scale, L * N);
  PROPHET_CHECK(gap_weight, std::size_t(c.limits) * (1 + N));
  PROPHET_CHECK(horizon_weight, F * d * d);
  PROPHET_CHECK(ahead_weight, F > 0 ? L * E * d : 0);
  PROPHET_CHECK(ahead_bias, F * L * E);
  PROPHET_CHECK(ahead_scale, F * L);
#undef PROPHET_CHECK
}

void TransformerNetwork::take_floats(const TransformerWeights& w) {
  const std::size_t d = std::size_t(config_.width), A = std::size_t(config_.attention_heads),
                    N = std::size_t(config_.heads);
  layer = padded_rows(w.layer, d, columns_);
  pad = padded_rows(w.pad, d, columns_);
  place = padded_rows(w.place, d, columns_);
  project_bias = padded_rows(w.project_bias, d, columns_);
  norm_gain = padded_rows(w.norm_gain, d, columns_);
  norm_bias = padded_rows(w.norm_bias, d, columns_);
  own_bias = padded_rows(w.own_bias, experts(), lanes_);
  ahead_bias = padded_rows(w.ahead_bias, experts(), lanes_);
  mix.assign(N * N, 0);
  for (std::size_t n = 0; n < N; ++n) mix[n * N + n] = 1;
  own_weight = w.own_weight;
  next_scale = w.next_scale;
  gap_weight = w.gap_weight;
  ahead_scale = w.ahead_scale;
  for (std::size_t b = 0; b < blocks_.size(); ++b) {
    Block& block = blocks_[b];
    block.enter_gain = padded_row(w.enter_gain, b, d, columns_);
    block.enter_bias = padded_row(w.enter_bias, b, d, columns_);
    block.merge_bias = padded_row(w.merge_bias, b, d, columns_);
    block.middle_gain = padded_row(w.middle_gain, b, d, columns_);
    block.middle_bias = padded_row(w.middle_bias, b, d, columns_);
    block.up_bias = padded_row(w.up_bias, b, 4 * d, inner_);
    block.down_bias = padded_row(w.down_bias, b, d, columns_);
    block.read_bias.assign(kParts * attended_, 0);
    copy_rows(w.read_bias.data() + b * kParts * d, kParts * A, d / A, head_,
              block.read_bias.data());
  }
}

void TransformerNetwork::take_halves(const TransformerWeights& w) {
  const std::size_t L = layers(), E = experts(), d = std::size_t(config_.width),
                    A = std::size_t(config_.attention_heads), H = std::size_t(config_.hidden),
                    N = std::size_t(config_.heads), F = std::size_t(config_.ahead), C = columns_;
  const std::size_t read = kParts * attended_ * C, merge = C * attended_, up = inner_ * C;
  const std::size_t entries = L * E * C, project = H > 0 ? C * reading_ : 0, use = L * leaves_ * C,
                    horizon = F * C * C, ahead = F > 0 ? L * lanes_ * C : 0;
  halves_ = make_halves(blocks_.size() * (read + merge + 2 * up) + entries + project + use +
                        horizon + ahead);
  std::uint16_t* next = halves_.get();
  const auto take = [&next](std::size_t size) { return std::exchange(next, next + size); };

  std::vector<std::uint16_t> spread(d * attended_, 0);  // merge, its inputs padded by head
  for (std::size_t b = 0; b < blocks_.size(); ++b) {
    std::uint16_t* to = take(read);
    for (std::size_t h = 0; h < kParts * A; ++h) {
      write_tiles(w.read_weight.data() + (b * kParts * A + h) * (d / A) * d, d / A, d, C,
                  to + h * head_ * C);
    }
    blocks_[b].read = to;
    to = take(merge);
    copy_rows(w.merge_weight.data() + b * d * d, d * A, d / A, head_, spread.data());
    write_tiles(spread.data(), d, attended_, attended_, to);
    blocks_[b].merge = to;
    to = take(up);
    write_tiles(w.up_weight.data() + b * 4 * d * d, 4 * d, d, C, to);
    blocks_[b].up = to;
    to = take(up);
    write_tiles(w.down_weight.data() + b * 4 * d * d, d, 4 * d, inner_, to);
    blocks_[b].down = to;
  }
  entries_ = take(entries);
  copy_rows(w.expert.data(), L * E, d, C, entries_);
  project_ = take(project);
  if (H > 0) write_tiles(w.project_weight.data(), d, H, reading_, project_);
  use_ = take(use);
  horizon_ = take(horizon);
  ahead_ = take(ahead);
  for (std::size_t l = 0; l < L; ++l) {
    write_tiles(w.use_weight.data() + l * N * E * d, N * E, d, C, use_ + l * leaves_ * C);
    if (F > 0) write_tiles(w.ahead_weight.data() + l * E * d, E, d, C, ahead_ + l * lanes_ * C);
  }
  for (std::size_t f = 0; f < F; ++f) {
    write_tiles(w.horizon_weight.data() + f * d * d, d, d, C, horizon_ + f * C * C);
  }
}

}  // namespace prophet
