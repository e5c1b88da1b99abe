// Routes and options that the tests of the simulator share.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "policy/traces.h"
#include "sim/next_use.h"
#include "sim/replay.h"

namespace prophet::testing {

// make_trace as [tokens, layers, top_k].
inline std::vector<std::int32_t> make_routes(const Geometry& geometry, std::int32_t tokens,
                                             bool skew, std::uint64_t seed) {
  std::vector<std::int32_t> routes;
  for (const Step& step : make_trace(geometry, tokens, skew, seed)) {
    routes.insert(routes.end(), step.experts.begin(), step.experts.end());
  }
  return routes;
}

// A link of one byte per nanosecond, experts of 1,000 bytes.
inline ReplayOptions options_for(const Geometry& geometry, std::int32_t slots,
                                 const std::string& policy = "lru",
                                 PoolScope pool = PoolScope::global) {
  ReplayOptions options;
  options.geometry = geometry;
  options.expert_bytes = 1000;
  options.link.bytes_per_second = 1e9;
  options.times.layer = 500;
  options.times.expert = 100;
  options.engine.slots = slots;
  options.engine.policy = policy;
  options.engine.pool = pool;
  options.engine.mover.chunk_bytes = 250;
  return options;
}

// Decodes all routes in one chunk; Belady is told what comes.
inline ReplayResult decode(const ReplayOptions& options, const std::vector<std::int32_t>& routes,
                           std::int32_t batch = 1) {
  Replay replay(options);
  std::vector<std::int64_t> next;
  if (options.engine.policy == "belady") {
    NextUse(options.geometry, replay.rooms(), 0).prepend(routes, batch, next);
  }
  replay.decode({routes, {}, next}, batch);
  return replay.result();
}

inline std::int64_t misses(const ReplayOptions& options, const std::vector<std::int32_t>& routes) {
  return static_cast<std::int64_t>(decode(options, routes).counters.misses);
}

}  // namespace prophet::testing
