#include "sim/stack_distance.h"

#include <algorithm>
#include <limits>
#include <string>

#include "core/error.h"
#include "sim/next_use.h"

namespace prophet {
namespace {

constexpr std::int64_t kKeys = std::int64_t{1} << 24;  // keys in a packed entry
constexpr std::int64_t kFarthest = std::int64_t{1} << 38;
constexpr std::int64_t kHeld = -kFarthest;  // in use: sooner than any next use

std::int64_t pack(std::int64_t next, std::int32_t key) {
  return std::min(next, kFarthest) * kKeys + key;
}
std::int32_t key_of(std::int64_t entry) { return static_cast<std::int32_t>(entry & (kKeys - 1)); }

const Geometry& checked(const Geometry& g) {
  if (g.layers < 1 || g.top_k < 1 || g.top_k > g.experts_per_layer || g.top_k > 64 ||
      std::int64_t(g.layers) * g.experts_per_layer >= kKeys) {
    throw InvalidArgument("no stack distances for " + std::to_string(g.layers) + " layers of " +
                          std::to_string(g.experts_per_layer) + " experts with top-" +
                          std::to_string(g.top_k) + ": they are for top-1 to top-64");
  }
  return g;
}

}  // namespace

std::vector<std::uint64_t> SizeHistogram::hits() const {
  std::vector<std::uint64_t> out(from_.size());
  std::uint64_t sum = 0;
  for (std::size_t slots = 0; slots < out.size(); ++slots) {
    sum += from_[slots];
    out[slots] = sum + only_[slots];
  }
  return out;
}

LruStack::LruStack(std::int32_t keys, std::int32_t top_k)
    : keys_(keys),
      top_k_(top_k),
      used_(std::size_t(keys)),
      peers_(std::size_t(keys) * top_k),
      last_(std::size_t(keys)),
      sizes_(keys) {}

bool LruStack::Last::hit(std::int32_t slots) const {
  if (step_size == 0 || slots <= above) return false;
  return slots >= above + step_size || (inside >> (slots - above) & 1) != 0;
}

LruStack::Last LruStack::find(std::int32_t key) {
  const std::int32_t when = used_[key];
  if (when == 0) return {};
  Last out;
  for (std::int32_t other : used_) out.above += other > when;
  const std::int32_t* peers = &peers_[std::size_t(key) * top_k_];
  for (std::int32_t k = 0; k < top_k_; ++k) out.step_size += used_[peers[k]] == when;
  // Pools that end inside the step of the last use keep those of it that were touched last.
  for (std::int32_t i = 1; i < out.step_size; ++i) {
    const std::int32_t slots = out.above + i;
    const bool mine = last_[key].hit(slots);
    std::int32_t later = 0;
    for (std::int32_t k = 0; k < top_k_; ++k) {
      const std::int32_t other = peers[k];
      if (other == key || used_[other] != when) continue;
      const bool theirs = last_[other].hit(slots);
      later += theirs == mine ? other > key : mine;
    }
    if (later < i) {
      out.inside |= std::uint64_t{1} << i;
      sizes_.hit_at(slots);
    }
  }
  sizes_.hit_from(out.above + out.step_size);
  return out;
}

void LruStack::serve(std::span<const std::int32_t> step) {
  if (clock_ == std::numeric_limits<std::int32_t>::max()) {
    throw InvalidArgument("stack distances count at most 2^31 - 1 layer steps: take fewer tokens");
  }
  found_.clear();
  for (std::int32_t key : step) found_.push_back(find(key));
  ++clock_;
  for (std::size_t k = 0; k < step.size(); ++k) {
    used_[step[k]] = clock_;
    last_[step[k]] = found_[k];
    std::copy(step.begin(), step.end(), &peers_[std::size_t(step[k]) * top_k_]);
  }
}

ClairvoyantStack::ClairvoyantStack(std::int32_t keys) : keys_(keys), sizes_(keys) {
  stack_.reserve(std::size_t(keys));
}

void ClairvoyantStack::serve(std::span<const std::int32_t> step,
                             std::span<const std::int64_t> next) {
  const auto find = [this](std::int32_t key) {
    return std::find_if(stack_.begin(), stack_.end(),
                        [key](std::int64_t entry) { return key_of(entry) == key; });
  };
  // All are asked for before any place changes hands.
  for (std::int32_t key : step) {
    const auto at = find(key);
    if (at != stack_.end()) sizes_.hit_from(static_cast<std::int32_t>(at - stack_.begin()) + 1);
  }
  for (std::int32_t key : step) {
    auto at = find(key);
    if (at == stack_.end()) at = stack_.insert(at, 0);
    std::int64_t carried = pack(kHeld, key);
    // The one carried down takes a place where it is needed sooner; the place of `key` ends it.
    std::int64_t top = stack_.front();
    if (at == stack_.begin()) {
      stack_.front() = carried;
      continue;
    }
    stack_.front() = carried;
    for (auto place = stack_.begin() + 1; place != at; ++place) {
      const std::int64_t sooner = std::min(*place, top);
      top = std::max(*place, top);
      *place = sooner;
    }
    *at = top;
  }
  for (std::size_t k = 0; k < step.size(); ++k) *find(step[k]) = pack(next[k], step[k]);
}

StackDistances::StackDistances(const Geometry& geometry)
    : geometry_(checked(geometry)),
      lru_(geometry.total(), geometry.top_k),
      clairvoyant_(geometry.total()),
      layer_lru_(std::size_t(geometry.layers),
                 LruStack(geometry.experts_per_layer, geometry.top_k)),
      layer_clairvoyant_(std::size_t(geometry.layers),
                         ClairvoyantStack(geometry.experts_per_layer)),
      cutter_(geometry) {}

void StackDistances::decode(std::span<const std::int32_t> routes,
                            std::span<const std::int64_t> next) {
  const std::size_t row = std::size_t(geometry_.layers) * geometry_.top_k;
  if (routes.size() % row != 0 || next.size() != routes.size()) {
    throw InvalidArgument("a chunk is whole tokens of " + std::to_string(row) +
                          " ids with a next use for each; it has " + std::to_string(routes.size()) +
                          " ids and " + std::to_string(next.size()) + " next uses");
  }
  Wave wave;
  for (std::size_t at = 0; at < routes.size(); at += geometry_.top_k) {
    const auto layer = static_cast<std::int32_t>(at / geometry_.top_k % geometry_.layers);
    cutter_.begin(layer, routes.data() + at, 1, row, geometry_.experts_per_layer);
    cutter_.next(wave);
    const auto uses = next.subspan(at, std::size_t(geometry_.top_k));
    global_.clear();
    for (std::int32_t expert : wave.experts) global_.push_back(geometry_.index({layer, expert}));
    lru_.serve(global_);
    clairvoyant_.serve(global_, uses);
    layer_lru_[layer].serve(wave.experts);
    layer_clairvoyant_[layer].serve(wave.experts, uses);
    tokens_ += layer == 0;
  }
}

std::uint64_t StackDistances::accesses() const {
  return tokens_ * std::uint64_t(geometry_.layers) * std::uint64_t(geometry_.top_k);
}

std::vector<std::uint64_t> StackDistances::misses(std::vector<std::uint64_t> hits,
                                                  std::uint64_t accesses) const {
  std::fill_n(hits.begin(), geometry_.top_k, 0);
  for (std::uint64_t& count : hits) count = accesses - count;
  return hits;
}

std::vector<std::uint64_t> StackDistances::lru() const { return misses(lru_.hits(), accesses()); }

std::vector<std::uint64_t> StackDistances::clairvoyant() const {
  return misses(clairvoyant_.hits(), accesses());
}

std::vector<std::vector<std::uint64_t>> StackDistances::lru_per_layer() const {
  std::vector<std::vector<std::uint64_t>> out;
  for (const LruStack& stack : layer_lru_) {
    out.push_back(misses(stack.hits(), tokens_ * std::uint64_t(geometry_.top_k)));
  }
  return out;
}

std::vector<std::vector<std::uint64_t>> StackDistances::clairvoyant_per_layer() const {
  std::vector<std::vector<std::uint64_t>> out;
  for (const ClairvoyantStack& stack : layer_clairvoyant_) {
    out.push_back(misses(stack.hits(), tokens_ * std::uint64_t(geometry_.top_k)));
  }
  return out;
}

}  // namespace prophet
