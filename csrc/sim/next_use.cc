#include "sim/next_use.h"

#include <algorithm>
#include <string>

#include "core/error.h"

namespace prophet {

NextUse::NextUse(const Geometry& geometry, std::vector<std::int32_t> rooms, std::int64_t waves)
    : geometry_(geometry),
      rooms_(std::move(rooms)),
      time_(waves),
      next_(std::size_t(geometry.total()), kNever),
      cutter_(geometry) {}

void NextUse::prepend(std::span<const std::int32_t> routes, std::int32_t tokens_per_pass,
                      std::vector<std::int64_t>& out) {
  const std::size_t row = std::size_t(geometry_.layers) * geometry_.top_k;
  if (tokens_per_pass < 1 || routes.size() % row != 0) {
    throw InvalidArgument("a chunk is whole tokens of " + std::to_string(row) +
                          " ids, in passes of at least one token; it has " +
                          std::to_string(routes.size()) + " ids, passes of " +
                          std::to_string(tokens_per_pass));
  }
  const auto tokens = static_cast<std::int32_t>(routes.size() / row);
  uses_.clear();
  std::int32_t waves = 0;
  for (std::int32_t first = 0; first < tokens; first += tokens_per_pass) {
    const std::int32_t pass = std::min(tokens_per_pass, tokens - first);
    for (std::int32_t layer = 0; layer < geometry_.layers; ++layer) {
      cutter_.begin(layer, routes.data() + first * row + layer * geometry_.top_k, pass, row,
                    rooms_[layer]);
      for (Wave wave; cutter_.next(wave); ++waves) {
        for (std::int32_t expert : wave.experts) {
          uses_.push_back({geometry_.index({layer, expert}), waves});
        }
      }
    }
  }
  time_ -= waves;
  const std::size_t begin = out.size();
  out.resize(begin + uses_.size());
  for (std::size_t i = uses_.size(); i-- > 0;) {
    std::int64_t& next = next_[uses_[i].index];
    out[begin + i] = next;
    next = time_ + uses_[i].wave;
  }
}

}  // namespace prophet
