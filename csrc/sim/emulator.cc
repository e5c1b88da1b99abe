#include "sim/emulator.h"

#include <algorithm>
#include <string>

#include "core/error.h"

namespace prophet {
namespace {

// SplitMix64: a well-mixed number of a number.
std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

}  // namespace

Emulator::Emulator(const Geometry& geometry, const EmulatorOptions& options)
    : geometry_(geometry),
      options_(options),
      chosen_(std::size_t(geometry.experts_per_layer)),
      named_(std::size_t(geometry.experts_per_layer)) {
  if (!(options.recall >= 0 && options.recall <= 1) || options.ahead < 0) {
    throw InvalidArgument(
        "an emulated predictor has a recall of 0 to 1 and looks 0 or more layers "
        "ahead, not " +
        std::to_string(options.recall) + " and " + std::to_string(options.ahead));
  }
}

void Emulator::begin(std::span<const std::int32_t> routes, std::span<const std::int32_t> next) {
  routes_ = routes;
  next_ = next;
  ++pass_;
}

void Emulator::reset() {
  routes_ = next_ = {};
  pass_ = 0;
}

void Emulator::observe(const Glimpse&) {}

void Emulator::forecast(std::int32_t layer, std::vector<Forecast>& out) {
  const std::int32_t layers = geometry_.layers;
  const std::int32_t last =
      options_.ahead == 0 ? layers - 1 - layer : std::min(options_.ahead, layers);
  for (std::int32_t horizon = 1; horizon <= last; ++horizon) {
    const std::int32_t at = layer + horizon;
    if (at < layers) {
      name_experts(routes_, at, horizon, pass_, out);
    } else {
      name_experts(next_, at - layers, horizon, pass_ + 1, out);
    }
  }
}

void Emulator::name_experts(std::span<const std::int32_t> routes, std::int32_t layer,
                            std::int32_t horizon, std::int64_t pass, std::vector<Forecast>& out) {
  const std::size_t k = std::size_t(geometry_.top_k), row = k * std::size_t(geometry_.layers);
  std::fill(chosen_.begin(), chosen_.end(), false);
  std::fill(named_.begin(), named_.end(), false);
  std::int32_t chosen = 0;
  for (std::size_t from = std::size_t(layer) * k; from < routes.size(); from += row) {
    for (std::size_t i = 0; i < k; ++i) {
      const auto expert = std::size_t(routes[from + i]);
      chosen += !chosen_[expert];
      chosen_[expert] = true;
    }
  }
  const std::int32_t experts = geometry_.experts_per_layer;
  std::int32_t others = experts - chosen;  // false ones that are left to name
  // The same draw for the same pass and layer, however far ahead it is.
  const std::uint64_t seed = mix(std::uint64_t(pass) * 4096 + std::uint64_t(layer));
  for (std::int32_t e = 0; e < experts; ++e) {
    if (!chosen_[std::size_t(e)]) continue;
    const std::uint64_t draw = mix(seed + std::uint64_t(e));
    std::int32_t name = e;
    if (double(draw >> 11) * 0x1p-53 >= options_.recall) {
      if (others == 0) continue;
      --others;
      name = std::int32_t(mix(draw) % std::uint64_t(experts));
      while (chosen_[std::size_t(name)] || named_[std::size_t(name)]) name = (name + 1) % experts;
    }
    named_[std::size_t(name)] = true;
    out.push_back({{layer, name}, std::max(float(options_.recall), kLeastForecast), horizon});
  }
}

}  // namespace prophet
