// Engine::forward: plan a wave, lease its experts, compute them as they land, sum in order.
#include <algorithm>
#include <cstdint>

#include "core/error.h"
#include "engine/engine.h"
#include "engine/scratch.h"

namespace prophet {
namespace {

std::string count(std::uint64_t n, const char* what) { return std::to_string(n) + " " + what; }

}  // namespace

void Engine::set_ffn(const FfnLayout& layout) {
  const FfnShape& shape = layout.shape;
  if (shape.hidden <= 0 || shape.inter <= 0) {
    throw InvalidArgument("an expert needs hidden and inter sizes above zero");
  }
  const std::uint64_t matrix = std::uint64_t(shape.hidden) * shape.inter * size_of(shape.weights);
  auto check = [&](const char* which, const PieceSlice& slice) {
    if (slice.piece < 0 || slice.piece >= store_->pieces()) {
      throw InvalidArgument(std::string(which) + " lies in piece " + std::to_string(slice.piece) +
                            ", but an expert has " + count(store_->pieces(), "pieces"));
    }
    const std::uint64_t have = store_->piece_bytes({0, 0}, slice.piece);
    if (slice.offset > have || have - slice.offset < matrix) {
      throw InvalidArgument(std::string(which) + " needs " + count(matrix, "bytes") +
                            " from byte " + std::to_string(slice.offset) + ", but its piece has " +
                            count(have, "bytes"));
    }
  };
  if (shape.has_gate) check("gate", layout.gate);
  check("up", layout.up);
  check("down", layout.down);
  std::lock_guard<std::mutex> step(step_mutex_);
  if (has_ffn_ && hits_) throw StateError("set_ffn was called already: load the model again");
  ffn_ = layout;
  has_ffn_ = true;
  Lock lock(mutex_);
  open_hit_path();
}

CudaExpert Engine::addresses(ExpertKey key, std::int32_t slot) const {
  const std::byte* begin = arena_.data() + std::uint64_t(slot) * store_->slot_bytes();
  auto at = [&](const PieceSlice& slice) {
    return begin + store_->piece_at(key, slice.piece) + slice.offset;
  };
  return {ffn_.shape.has_gate ? at(ffn_.gate) : nullptr, at(ffn_.up), at(ffn_.down)};
}

FfnJob Engine::job(const Lease::Entry& entry, std::size_t index) const {
  const Scratch& s = *scratch_;
  const CudaExpert expert = addresses(entry.key, entry.slot);
  FfnJob job;
  job.gate = static_cast<const std::byte*>(expert.gate);
  job.up = static_cast<const std::byte*>(expert.up);
  job.down = static_cast<const std::byte*>(expert.down);
  job.tokens = s.starts[index + 1] - s.starts[index];
  job.rows = s.rows.data() + s.starts[index];
  job.outputs = s.outputs.data() + s.starts[index];
  return job;
}

// Takes tokens from `first` on while their experts fit in the layer's pool; returns the token after
// the last. Fills the wave's part of the scratch.
std::int32_t Engine::plan_wave(std::int32_t layer, const LayerBatch& batch, std::int32_t first) {
  Scratch& s = *scratch_;
  const std::int32_t experts = geometry().experts_per_layer, k = batch.top_k;
  const std::size_t room = cache_.pool_slots(layer);
  auto wanted = [&](std::int64_t pair) {
    return batch.ids[pair] < experts && s.weights[pair] != 0.0f;
  };
  for (std::int32_t expert : s.experts) s.place[expert] = -1;
  s.experts.clear();
  std::int32_t last = first;
  for (; last < batch.tokens; ++last) {
    const std::size_t before = s.experts.size();
    for (std::int64_t pair = std::int64_t(last) * k; pair < std::int64_t(last + 1) * k; ++pair) {
      const std::int64_t id = batch.ids[pair];
      if (!wanted(pair) || s.place[id] >= 0) continue;
      s.place[id] = 0;
      s.experts.push_back(static_cast<std::int32_t>(id));
    }
    if (s.experts.size() <= room) continue;
    if (last == first) {
      throw InvalidArgument("one token needs " + count(s.experts.size(), "experts") + " of layer " +
                            std::to_string(layer) + ", but its pool has " + count(room, "slots") +
                            ": load with more slots");
    }
    for (std::size_t i = before; i < s.experts.size(); ++i) s.place[s.experts[i]] = -1;
    s.experts.resize(before);
    break;
  }
  std::sort(s.experts.begin(), s.experts.end());
  for (std::size_t i = 0; i < s.experts.size(); ++i) {
    s.place[s.experts[i]] = static_cast<std::int32_t>(i);
  }
  return last;
}

// Counting sort of the wave's pairs by expert, and a place for each result.
void Engine::sort_pairs(const LayerBatch& batch, std::int32_t first, std::int32_t last) {
  Scratch& s = *scratch_;
  const std::int32_t experts = geometry().experts_per_layer, k = batch.top_k;
  const std::size_t hidden = ffn_.shape.hidden;
  auto wanted = [&](std::int64_t pair) {
    return batch.ids[pair] < experts && s.weights[pair] != 0.0f;
  };
  const std::size_t pairs = std::size_t(last - first) * k;
  s.starts.assign(s.experts.size() + 1, 0);
  s.of_pair.assign(pairs, nullptr);
  if (s.parts.size() < pairs * hidden) s.parts.resize(pairs * hidden);
  const std::int64_t base = std::int64_t(first) * k;
  for (std::size_t i = 0; i < pairs; ++i) {
    if (wanted(base + i)) ++s.starts[s.place[batch.ids[base + i]] + 1];
  }
  for (std::size_t i = 1; i < s.starts.size(); ++i) s.starts[i] += s.starts[i - 1];
  s.rows.resize(s.starts.back());
  s.outputs.resize(s.starts.back());
  s.landed.assign(s.starts.begin(), s.starts.end() - 1);  // where the next pair of an expert goes
  for (std::size_t i = 0; i < pairs; ++i) {
    if (!wanted(base + i)) continue;
    const std::int32_t to = s.landed[s.place[batch.ids[base + i]]]++;
    s.rows[to] = first + static_cast<std::int32_t>(i) / k;
    s.outputs[to] = s.parts.data() + i * hidden;
    s.of_pair[i] = s.outputs[to];
  }
}

// Computes the entries `landed` of the wave's lease; the engine's state is free meanwhile.
void Engine::compute(Lock& lock, std::span<const std::int32_t> landed) {
  Scratch& s = *scratch_;
  s.jobs.clear();
  for (std::int32_t i : landed) {
    s.jobs.push_back(job(s.lease.entries[i], i));
    s.computed[i] = true;
  }
  lock.unlock();
  const Nanos begin = backend_->now();
  expert_ffn(ffn_.shape, s.jobs, s.x.data(), s.ffn, pool_);
  const Nanos end = backend_->now();
  lock.lock();
  record(EventKind::compute, begin, end, {s.lease.entries.front().key.layer, -1});
}

void Engine::serve_wave(std::int32_t layer) {
  Scratch& s = *scratch_;
  Lock lock(mutex_);
  const Nanos now = backend_->now();
  record(EventKind::wave, now, now, {layer, -1});
  if (s.experts.empty()) return;
  lease_locked(lock, layer, s.experts, s.lease);
  try {
    s.computed.assign(s.experts.size(), false);
    for (std::size_t left = s.experts.size(); left > 0;) {
      s.landed.clear();
      for (std::size_t i = 0; i < s.lease.entries.size(); ++i) {
        const Lease::Entry& entry = s.lease.entries[i];
        if (entry.status == Lease::Status::failed) throw_failure(entry);
        if (entry.status == Lease::Status::held && !s.computed[i]) {
          s.landed.push_back(static_cast<std::int32_t>(i));
        }
      }
      if (s.landed.empty()) {
        wait_for_change(lock, s.lease);
        open_or_throw();
        continue;
      }
      left -= s.landed.size();
      compute(lock, s.landed);
      if (left > 0) collect();
    }
  } catch (...) {
    release_locked(s.lease);
    throw;
  }
  release_locked(s.lease);
}

void Engine::land(Lock& lock, Lease& lease) {
  while (true) {
    bool all = true;
    for (const Lease::Entry& entry : lease.entries) {
      if (entry.status == Lease::Status::failed) throw_failure(entry);
      all = all && entry.status == Lease::Status::held;
    }
    if (all) return;
    wait_for_change(lock, lease);
    open_or_throw();
  }
}

// The layer step begins: policies and the predictor hear what the router said. `batch` is in host
// memory but for x, of which `hidden` are the last `hidden_rows` rows: all, the last, or none.
void Engine::begin_layer(std::int32_t layer, const LayerBatch& batch, const void* hidden,
                         std::int32_t hidden_rows) {
  Scratch& s = *scratch_;
  const std::size_t width = ffn_.shape.hidden, pairs = std::size_t(batch.tokens) * batch.top_k;
  for (std::size_t i = 0; i < pairs; ++i) {
    if (batch.ids[i] < 0) throw InvalidArgument("expert ids must not be negative");
  }
  s.weights.resize(pairs);
  widen(batch.weights_dtype, batch.weights, s.weights.data(), pairs);
  s.counts.assign(geometry().experts_per_layer, 0);
  for (std::size_t i = 0; i < pairs; ++i) {
    if (batch.ids[i] < std::ssize(s.counts) && s.weights[i] != 0.0f) ++s.counts[batch.ids[i]];
  }
  {
    Lock lock(mutex_);
    begin_step(layer, batch.tokens, s.counts);
  }
  if (!foresight_) return;
  s.ids.resize(pairs);
  // Ids of other ranks may not fit; any id outside the layer says the same.
  for (std::size_t i = 0; i < pairs; ++i) {
    s.ids[i] = static_cast<std::int32_t>(std::min<std::int64_t>(batch.ids[i], INT32_MAX));
  }
  s.find_last_rows(streams_, batch.tokens, hidden_rows);
  s.last.resize(s.last_rows.size() * width);
  for (std::size_t i = 0; i < s.last_rows.size(); ++i) {
    const std::size_t row = std::size_t(hidden_rows - batch.tokens + s.last_rows[i]);
    const auto* from = static_cast<const std::byte*>(hidden) + row * width * size_of(batch.dtype);
    widen(batch.dtype, from, s.last.data() + i * width, width);
  }
  Glimpse glimpse{layer, batch.tokens, batch.top_k, s.ids.data(), s.weights.data()};
  if (!s.last_rows.empty()) glimpse.hidden = s.last.data();
  glimpse.hidden_rows = std::int32_t(s.last_rows.size());
  hear(glimpse, width);
}

// One for each stream of the step where all rows are at hand, else the last of all.
void Engine::Scratch::find_last_rows(const std::vector<std::int64_t>& streams, std::int32_t tokens,
                                     std::int32_t hidden_rows) {
  last_rows.clear();
  of_stream.clear();
  if (hidden_rows < tokens || std::ssize(streams) != tokens) {
    if (hidden_rows > 0) last_rows.push_back(tokens - 1);
    return;
  }
  for (std::int32_t row = 0; row < tokens; ++row) {
    const auto found = std::find(of_stream.begin(), of_stream.end(), streams[row]);
    if (found == of_stream.end()) {
      of_stream.push_back(streams[row]);
      last_rows.push_back(row);
    } else {
      last_rows[std::size_t(found - of_stream.begin())] = row;
    }
  }
}

void Engine::forward(std::int32_t layer, const LayerBatch& batch) {
  std::lock_guard<std::mutex> one_step(step_mutex_);
  if (!has_ffn_) throw StateError("forward needs set_ffn first: the engine only knows bytes");
  if (batch.tokens <= 0 || batch.top_k <= 0) {
    throw InvalidArgument("a layer call needs at least one token and one expert per token");
  }
  if (device_) return forward_on_device(layer, batch);
  if (batch.on_device) {
    throw InvalidArgument(
        "the layer's arrays are on a GPU, but this engine computes on the CPU: "
        "move them to the host, or load with backend cuda");
  }
  Scratch& s = *scratch_;
  const std::size_t hidden = ffn_.shape.hidden, k = batch.top_k;
  const Nanos begin = backend_->now();
  begin_layer(layer, batch, batch.x, batch.tokens);
  s.x.resize(batch.tokens * hidden);
  s.sum.resize(hidden);
  widen(batch.dtype, batch.x, s.x.data(), s.x.size());

  auto* out = static_cast<std::byte*>(batch.out);
  for (std::int32_t first = 0, last; first < batch.tokens; first = last) {
    last = plan_wave(layer, batch, first);
    sort_pairs(batch, first, last);
    serve_wave(layer);
    for (std::int32_t token = first; token < last; ++token) {
      weighted_sum(s.weights.data() + token * k, s.of_pair.data() + (token - first) * k,
                   static_cast<int>(k), s.sum.data(), hidden);
      narrow(s.sum.data(), batch.dtype, out + token * hidden * size_of(batch.dtype), hidden);
    }
  }
  {
    Lock lock(mutex_);
    record(EventKind::layer_step, begin, backend_->now(), {layer, -1});
  }
}

}  // namespace prophet
