#include "sim/replay.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/error.h"
#include "store/synthetic_store.h"

namespace prophet {
namespace {

void add(Counters& sum, const Counters& c) {
  static_assert(sizeof(Counters) == 28 * 8, "a new counter: add it here");
  sum.bytes_moved += c.bytes_moved;
  sum.bytes_demand += c.bytes_demand;
  sum.bytes_prefetch_used += c.bytes_prefetch_used;
  sum.bytes_prefetch_late += c.bytes_prefetch_late;
  sum.bytes_prefetch_wasted += c.bytes_prefetch_wasted;
  sum.bytes_prefetch_unused += c.bytes_prefetch_unused;
  sum.bytes_cancelled += c.bytes_cancelled;
  sum.bytes_staged += c.bytes_staged;
  sum.bytes_found_staged += c.bytes_found_staged;
  sum.hits_resident += c.hits_resident;
  sum.hits_in_flight += c.hits_in_flight;
  sum.misses += c.misses;
  sum.evictions += c.evictions;
  sum.evicted_before_use += c.evicted_before_use;
  sum.layer_steps += c.layer_steps;
  sum.waves += c.waves;
  sum.reads += c.reads;
  sum.reads_failed += c.reads_failed;
  sum.expert_bytes_routed += c.expert_bytes_routed;
  sum.streamed_steps += c.streamed_steps;
  sum.foresight_steps += c.foresight_steps;
  sum.foresight_held_steps += c.foresight_held_steps;
  sum.prefetch_held_steps += c.prefetch_held_steps;
  sum.stall_ns += c.stall_ns;
  sum.compute_ns += c.compute_ns;
  sum.busy_ns += c.busy_ns;
  sum.now_ns += c.now_ns;
  sum.foresight_ns += c.foresight_ns;
}

void require_times(const ComputeTimes& t) {
  for (Nanos time : {t.pass, t.layer, t.layer_token, t.expert, t.expert_token, t.wait}) {
    if (time < 0) {
      throw InvalidArgument("computing takes 0 ns or more, not " + std::to_string(time) +
                            ": mend the machine's times");
    }
  }
}

constexpr double kInstant = 1e18;  // bytes per second

// How long one expert occupies the link.
Nanos occupation(const ReplayOptions& options) {
  const std::uint64_t unit = options.link.alignment;
  const std::uint64_t bytes = (options.expert_bytes + unit - 1) / unit * unit;
  const std::uint64_t chunk = std::max(options.engine.mover.chunk_bytes / unit * unit, unit);
  const auto time = [&](std::uint64_t part) {
    const double moving = double(part) / options.link.bytes_per_second * 1e9;
    return std::max<Nanos>(1, options.link.overhead + std::llround(moving));
  };
  const Nanos rest = bytes % chunk > 0 ? time(bytes % chunk) : 0;
  return Nanos(bytes / chunk) * time(chunk) + rest;
}

}  // namespace

Replay::Replay(ReplayOptions options)
    : options_(std::move(options)), residence_(options_.geometry), cutter_(options_.geometry) {
  require_times(options_.times);
  options_.engine.background = false;
  options_.engine.watcher = &residence_;
  options_.engine.threads = 1;
  if (options_.emulate && options_.predictor) {
    throw InvalidArgument("a replay has a predictor or emulates one: leave one of the two out");
  }
  build();
  for (std::int32_t layer = 0; layer < options_.geometry.layers; ++layer) {
    rooms_.push_back(engine_->pool_slots(layer));
  }
  done_.layers.resize(rooms_.size());
}

Replay::~Replay() = default;

void Replay::build() {
  backend_ = std::make_shared<SimBackend>(options_.link);
  if (options_.clairvoyant) {
    SimOptions instant = options_.link;
    instant.bytes_per_second = kInstant;
    instant.latency = instant.overhead = 0;
    backend_ = std::make_shared<SimBackend>(instant);
    on_link_ = occupation(options_);
    bound_computed_ = 0;
    bound_.emplace(std::min(options_.engine.slots, options_.geometry.total()), on_link_,
                   options_.link.latency, options_.times.expert + options_.times.expert_token);
  }
  backend_->open({"experts"});
  auto store = std::make_shared<SyntheticStore>(options_.geometry, options_.expert_bytes,
                                                options_.link.alignment);
  std::unique_ptr<Predictor> predictor;
  if (options_.predictor) predictor = options_.predictor();
  if (options_.emulate) {
    auto emulator = std::make_unique<Emulator>(options_.geometry, *options_.emulate);
    emulator_ = emulator.get();
    predictor = std::move(emulator);
  }
  engine_ =
      std::make_unique<Engine>(std::move(store), backend_, options_.engine, std::move(predictor));
}

void Replay::restart() {
  add(done_.counters, counters());
  build();
  residence_.forget();
}

Counters Replay::counters() const {
  Counters counters = engine_->counters();
  if (bound_) {
    counters.now_ns = bound_->now();
    counters.busy_ns = bound_->missed() * on_link_;
    counters.stall_ns = bound_->now() - bound_computed_;
  }
  return counters;
}

ReplayResult Replay::result() const {
  ReplayResult result = done_;
  add(result.counters, counters());
  result.stays = residence_.stays();
  return result;
}

// The processor computes; meanwhile landings make room for further prefetches.
void Replay::compute(Nanos time) {
  if (bound_) {
    computed_ns_ += time;
    return;
  }
  if (time == 0) return;
  const Nanos end = backend_->now() + time;
  while (engine_->progress()) {
    const Nanos next = backend_->next_landing();
    if (next >= end) break;
    backend_->advance(next - backend_->now());
  }
  backend_->advance(end - backend_->now());
}

void Replay::serve(std::int32_t layer, const Wave& wave, std::span<const std::int64_t> next) {
  if (!next.empty()) {
    keys_.clear();
    for (std::int32_t expert : wave.experts) keys_.push_back({layer, expert});
    engine_->reveal(keys_, next);
  }
  const Nanos asked = backend_->now();
  engine_->lease(layer, wave.experts, lease_);
  stall_ += backend_->now() - asked;  // a slot had to become free
  LayerCounts& counts = done_.layers[layer];
  std::size_t waited_for = 0;
  for (const Lease::Entry& entry : lease_.entries) {
    ++(entry.hit ? counts.resident : entry.coming ? counts.in_flight : counts.miss);
    waited_for += !entry.hit;
  }
  missed_ += waited_for;
  computed_.assign(wave.experts.size(), false);
  for (std::size_t left = wave.experts.size(); left > 0;) {
    Nanos time = 0;
    for (std::size_t i = 0; i < lease_.entries.size(); ++i) {
      if (computed_[i] || lease_.entries[i].status != Lease::Status::held) continue;
      computed_[i] = true;
      --left;
      time += options_.times.expert + wave.counts[i] * options_.times.expert_token;
    }
    if (time > 0) {
      done_.counters.compute_ns += time;
      compute(time);
    } else if (left > 0) {
      const Nanos begin = backend_->now();
      engine_->wait_any(lease_);
      stall_ += backend_->now() - begin;
    }
  }
  engine_->release(lease_);
  // A bound knows what comes, and asks for it when it has the time.
  if (!bound_ && waited_for > 0) compute(options_.times.wait);
  ++done_.counters.waves;
}

// Where times are those of a bound: what was computed and missed since the last time.
void Replay::settle() {
  if (!bound_) return;
  bound_computed_ += computed_ns_;
  const Nanos before = bound_->now();
  stall_ += bound_->step(computed_ns_, missed_) - before - computed_ns_;
  computed_ns_ = 0;
  missed_ = 0;
}

void Replay::pass(const Chunk& chunk, std::int32_t first, std::int32_t tokens) {
  const Geometry& g = options_.geometry;
  const std::size_t row = std::size_t(g.layers) * g.top_k;
  if (emulator_) {
    const auto rest = chunk.routes.subspan(first * row);
    const std::size_t here = tokens * row;
    emulator_->begin(rest.first(here), rest.subspan(here, std::min(rest.size() - here, here)));
  }
  const auto rows = chunk.streams.empty() ? chunk.streams : chunk.streams.subspan(first, tokens);
  engine_->streams({rows.begin(), rows.end()});
  compute(options_.times.pass);
  for (std::int32_t layer = 0; layer < g.layers; ++layer) {
    const std::size_t begin = first * row + std::size_t(layer) * g.top_k;
    if (options_.predictor) approach(chunk, layer, first, tokens);
    compute(options_.times.layer + tokens * options_.times.layer_token);
    count(chunk, begin, tokens);
    engine_->step(layer, tokens, counts_);
    if (options_.predictor || emulator_) observe(chunk, layer, first, tokens);
    cutter_.begin(layer, chunk.routes.data() + begin, tokens, row, rooms_[layer]);
    for (Wave wave; cutter_.next(wave);) {
      std::span<const std::int64_t> next;
      if (!chunk.next.empty()) {
        if (chunk.next.size() - next_at_ < wave.experts.size()) refuse_next(chunk);
        next = chunk.next.subspan(next_at_, wave.experts.size());
        next_at_ += wave.experts.size();
      }
      serve(layer, wave, next);
    }
    settle();
  }
}

// How many of the pass's tokens chose each expert of a layer.
void Replay::count(const Chunk& chunk, std::size_t begin, std::int32_t tokens) {
  const Geometry& g = options_.geometry;
  const std::size_t row = std::size_t(g.layers) * g.top_k;
  counts_.assign(g.experts_per_layer, 0);
  for (std::int32_t token = 0; token < tokens; ++token) {
    for (std::int32_t id : chunk.routes.subspan(begin + token * row, g.top_k)) {
      if (id >= 0 && id < g.experts_per_layer) ++counts_[id];  // the cutter refuses others
    }
  }
}

void Replay::approach(const Chunk& chunk, std::int32_t layer, std::int32_t first,
                      std::int32_t tokens) {
  const std::size_t layers = options_.geometry.layers, k = options_.geometry.top_k;
  Approach approach{layer, tokens};
  if (layer == 0 && !chunk.ids.empty()) approach.ids = chunk.ids.data() + first;
  const std::size_t width = chunk.entering.size() / (chunk.routes.size() / k);
  if (width > 0) {
    approach.entering = chunk.entering.data() + ((first + tokens - 1) * layers + layer) * width;
  }
  engine_->approach(approach, width);
}

void Replay::observe(const Chunk& chunk, std::int32_t layer, std::int32_t first,
                     std::int32_t tokens) {
  const std::size_t layers = options_.geometry.layers, k = options_.geometry.top_k;
  const std::size_t row = layers * k, begin = first * row + layer * k;
  Glimpse glimpse{layer, tokens, static_cast<std::int32_t>(k)};
  ids_.resize(tokens * k);
  weights_.resize(tokens * k);
  for (std::int32_t token = 0; token < tokens; ++token) {
    const std::size_t from = begin + token * row;
    std::copy_n(chunk.routes.data() + from, k, ids_.data() + token * k);
    if (!chunk.gates.empty()) {
      std::copy_n(chunk.gates.data() + from, k, weights_.data() + token * k);
    }
  }
  glimpse.experts = ids_.data();
  if (!chunk.gates.empty()) glimpse.weights = weights_.data();
  const std::size_t width = chunk.hidden.size() / (chunk.routes.size() / k);
  if (width > 0) {
    glimpse.hidden = chunk.hidden.data() + ((first + tokens - 1) * layers + layer) * width;
  }
  engine_->observe(glimpse, width);
}

std::int32_t Replay::begin(const Chunk& chunk) {
  const Geometry& g = options_.geometry;
  const std::size_t row = std::size_t(g.layers) * g.top_k;
  if (chunk.routes.size() % row != 0) {
    throw InvalidArgument(
        "routes are [tokens, " + std::to_string(g.layers) + ", " + std::to_string(g.top_k) +
        "], but " + std::to_string(chunk.routes.size()) + " ids are no whole number of tokens");
  }
  if (!chunk.gates.empty() && chunk.gates.size() != chunk.routes.size()) {
    throw InvalidArgument("gates are as many as routes, not " + std::to_string(chunk.gates.size()) +
                          " for " + std::to_string(chunk.routes.size()));
  }
  const std::size_t read = chunk.routes.size() / g.top_k;  // by routers
  if (read == 0 ? !chunk.hidden.empty() : chunk.hidden.size() % read != 0) {
    throw InvalidArgument(
        "hidden states are [tokens, layers, width], but " + std::to_string(chunk.hidden.size()) +
        " numbers are not one row for each of " + std::to_string(read) + " routers");
  }
  if (read == 0 ? !chunk.entering.empty() : chunk.entering.size() % read != 0) {
    throw InvalidArgument("what enters layers is [tokens, layers, width], but " +
                          std::to_string(chunk.entering.size()) +
                          " numbers are not one row for each of " + std::to_string(read) +
                          " layers");
  }
  const std::size_t tokens = chunk.routes.size() / row;
  if (!chunk.ids.empty() && chunk.ids.size() != tokens) {
    throw InvalidArgument("each of " + std::to_string(tokens) + " tokens has an id, but " +
                          std::to_string(chunk.ids.size()) + " are given");
  }
  if (!chunk.streams.empty() && chunk.streams.size() != tokens) {
    throw InvalidArgument("each of " + std::to_string(tokens) + " tokens is of one request, but " +
                          std::to_string(chunk.streams.size()) + " are named");
  }
  next_at_ = 0;
  return static_cast<std::int32_t>(tokens);
}

void Replay::refuse_next(const Chunk& chunk) const {
  throw InvalidArgument(
      "the next uses are of other passes: " + std::to_string(chunk.next.size()) +
      " of them do not fit these routes; make them by NextUse from the same chunk");
}

void Replay::decode(const Chunk& chunk, std::int32_t batch) {
  if (batch < 1) throw InvalidArgument("a forward pass has at least one token");
  const std::int32_t tokens = begin(chunk);
  if (bound_ && prefilled_) bound_->begin();
  prefilled_ = false;
  for (std::int32_t first = 0; first < tokens; first += batch) {
    const std::int32_t count = std::min(batch, tokens - first);
    const Nanos before = now();
    stall_ = 0;
    pass(chunk, first, count);
    done_.tpot.add(now() - before);
    done_.stall.add(stall_);
    done_.tokens += count;
    ++done_.passes;
  }
  if (next_at_ != chunk.next.size()) refuse_next(chunk);
}

std::uint64_t Replay::landed() const {
  return backend_->stats(Lane::demand).bytes + backend_->stats(Lane::prefetch).bytes;
}

void Replay::prefill(const Chunk& chunk) {
  const std::int32_t tokens = begin(chunk);
  if (tokens == 0) return;
  const Nanos before = now();
  const std::uint64_t bytes = landed();
  pass(chunk, 0, tokens);
  prefilled_ = true;
  done_.prefill_ns += now() - before;
  done_.prefill_bytes += landed() - bytes;
  done_.prefill_tokens += tokens;
  if (next_at_ != chunk.next.size()) refuse_next(chunk);
}

void Replay::packed(const Chunk& chunk, std::span<const Pass> passes, std::vector<Nanos>& ends) {
  const std::int32_t tokens = begin(chunk);
  std::int64_t named = 0;
  for (const Pass& one : passes) {
    if (one.tokens < 1 || one.decoded < 0 || one.decoded > one.tokens) {
      throw InvalidArgument("a pass has at least one token and decodes at most all of them, not " +
                            std::to_string(one.decoded) + " of " + std::to_string(one.tokens));
    }
    named += one.tokens;
  }
  if (named != tokens) {
    throw InvalidArgument("these passes have " + std::to_string(named) +
                          " tokens, their chunk has " + std::to_string(tokens));
  }
  std::int32_t first = 0;
  for (const Pass& one : passes) {
    const Nanos before = now();
    stall_ = 0;
    pass(chunk, first, one.tokens);
    first += one.tokens;
    for (std::int32_t i = 0; i < one.decoded; ++i) {
      done_.tpot.add(now() - before);
      done_.stall.add(stall_);
    }
    done_.tokens += one.decoded;
    done_.prefill_tokens += one.tokens - one.decoded;
    if (one.decoded == 0) done_.prefill_ns += now() - before;
    ++done_.passes;
    ends.push_back(now());
  }
  if (next_at_ != chunk.next.size()) refuse_next(chunk);
}

}  // namespace prophet
