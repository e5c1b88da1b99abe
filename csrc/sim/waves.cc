#include "sim/waves.h"

#include <algorithm>
#include <string>

#include "core/error.h"

namespace prophet {

WaveCutter::WaveCutter(const Geometry& geometry)
    : geometry_(geometry), count_of_(std::size_t(geometry.experts_per_layer)) {}

void WaveCutter::begin(std::int32_t layer, const std::int32_t* routes, std::int32_t tokens,
                       std::size_t stride, std::int32_t room) {
  if (room < geometry_.top_k) {
    throw InvalidArgument("one token needs " + std::to_string(geometry_.top_k) +
                          " experts of layer " + std::to_string(layer) + ", but it has " +
                          std::to_string(room) + " slots: give more slots");
  }
  layer_ = layer;
  row_ = routes;
  left_ = tokens;
  stride_ = stride;
  room_ = room;
}

void WaveCutter::check(const std::int32_t* row) const {
  for (std::int32_t k = 0; k < geometry_.top_k; ++k) {
    if (row[k] < 0 || row[k] >= geometry_.experts_per_layer) {
      throw InvalidArgument("the trace names expert " + std::to_string(row[k]) + " in layer " +
                            std::to_string(layer_) + ", but a layer has " +
                            std::to_string(geometry_.experts_per_layer) +
                            " experts: give the geometry of the traced model");
    }
    if (std::find(row, row + k, row[k]) != row + k) {
      throw InvalidArgument("the trace names expert " + std::to_string(row[k]) + " of layer " +
                            std::to_string(layer_) +
                            " twice for one token: a token chooses distinct experts");
    }
  }
}

bool WaveCutter::next(Wave& wave) {
  if (left_ == 0) return false;
  const std::int32_t k = geometry_.top_k;
  experts_.clear();
  wave.tokens = 0;
  for (; wave.tokens < left_; ++wave.tokens, row_ += stride_) {
    check(row_);
    const auto is_new = [&](std::int32_t expert) { return count_of_[expert] == 0; };
    const auto fresh = std::count_if(row_, row_ + k, is_new);
    if (std::ssize(experts_) + fresh > room_) break;
    for (std::int32_t i = 0; i < k; ++i) {
      if (count_of_[row_[i]]++ == 0) experts_.push_back(row_[i]);
    }
  }
  left_ -= wave.tokens;
  std::sort(experts_.begin(), experts_.end());
  counts_.resize(experts_.size());
  for (std::size_t i = 0; i < experts_.size(); ++i) {
    counts_[i] = count_of_[experts_[i]];
    count_of_[experts_[i]] = 0;
  }
  wave.experts = experts_;
  wave.counts = counts_;
  return true;
}

}  // namespace prophet
