#include "cache/cache.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <string>
#include <utility>

#include "core/error.h"

namespace prophet {
namespace {

constexpr std::int32_t kTransientPart = 8;  // of a pool's slots

const char* word(Residency state) {
  switch (state) {
    case Residency::absent:
      return "absent";
    case Residency::queued:
      return "queued";
    case Residency::loading:
      return "loading";
    case Residency::resident:
      return "resident";
    case Residency::leased:
      return "leased";
  }
  return "unknown";
}

std::string expert_name(ExpertKey key) {
  return "expert " + std::to_string(key.expert) + " of layer " + std::to_string(key.layer);
}

[[noreturn]] void refuse(ExpertKey key, Residency state, const char* what, const char* way_out) {
  throw StateError(std::string("cannot ") + what + " " + expert_name(key) + ": it is " +
                   word(state) + "; " + way_out);
}

void require_usable(const Geometry& geometry) {
  const std::int64_t total = std::int64_t{geometry.layers} * geometry.experts_per_layer;
  if (geometry.layers < 1 || geometry.experts_per_layer < 1 || geometry.top_k < 1 ||
      geometry.top_k > geometry.experts_per_layer ||
      total > std::numeric_limits<std::int32_t>::max()) {
    throw InvalidArgument("a cache cannot hold " + std::to_string(geometry.layers) + " layers of " +
                          std::to_string(geometry.experts_per_layer) + " experts with top-k " +
                          std::to_string(geometry.top_k) +
                          "; give at least one layer and one expert, 1 <= top-k <= experts, and "
                          "fewer than 2^31 experts in all");
  }
}

}  // namespace

struct Cache::Impl {
  struct Entry {
    std::int32_t slot = -1;
    std::int32_t leases = 0;
    bool transient = false;
    Residency state = Residency::absent;
  };

  // Experts that compete for the same slots: all of them, or those of one layer.
  struct Pool {
    std::int32_t slots = 0;
    std::int32_t transient = 0;      // experts
    std::vector<std::int32_t> free;  // used from the back
  };

  struct View final : CacheView {
    View(const Impl& impl, std::int32_t layer, bool transient)
        : impl(impl), wanted(layer), transient(transient) {}
    bool evictable(ExpertKey key) const override {
      if (!impl.geometry.contains(key)) return false;
      const Entry& entry = impl.entries[impl.geometry.index(key)];
      return entry.state == Residency::resident && (entry.transient || !transient) &&
             (impl.scope == PoolScope::global || key.layer == wanted);
    }
    std::optional<std::int32_t> layer() const override {
      if (impl.scope == PoolScope::global) return std::nullopt;
      return wanted;
    }
    const Impl& impl;
    const std::int32_t wanted;
    const bool transient;  // only such
  };

  Impl(const Geometry& geometry, std::int32_t wanted, PoolScope scope,
       std::unique_ptr<EvictionPolicy> policy)
      : geometry(geometry), scope(scope), policy(std::move(policy)) {
    require_usable(geometry);
    if (!this->policy) {
      throw InvalidArgument("a cache needs an eviction policy; make one with make_eviction_policy");
    }
    const std::int32_t count = scope == PoolScope::global ? 1 : geometry.layers;
    const std::int32_t most =
        scope == PoolScope::global ? geometry.total() : geometry.experts_per_layer;
    entries.resize(std::size_t(geometry.total()));
    pools.resize(std::size_t(count));
    for (std::int32_t p = 0; p < count; ++p) {
      const std::int32_t share = wanted / count + (p < wanted % count ? 1 : 0);
      if (share < geometry.top_k) {
        throw InvalidArgument(
            std::to_string(wanted) + " slots leave " + std::to_string(std::max(share, 0)) +
            " for " + (scope == PoolScope::global ? "the pool" : "layer " + std::to_string(p)) +
            ", but one token needs " + std::to_string(geometry.top_k) +
            " experts of a layer at once; give at least " +
            std::to_string(std::int64_t{geometry.top_k} * count) + " slots");
      }
      Pool& pool = pools[p];
      pool.slots = std::min(share, most);
      for (std::int32_t s = pool.slots; s > 0; --s) pool.free.push_back(slots + s - 1);
      slots += pool.slots;
    }
  }

  Entry& entry(ExpertKey key) {
    if (!geometry.contains(key)) refuse_unknown(key);
    return entries[geometry.index(key)];
  }

  [[noreturn]] void refuse_unknown(ExpertKey key) const {
    throw InvalidArgument(expert_name(key) + " does not exist; layers are 0 to " +
                          std::to_string(geometry.layers - 1) + ", experts 0 to " +
                          std::to_string(geometry.experts_per_layer - 1));
  }

  Pool& pool(std::int32_t layer) { return pools[scope == PoolScope::global ? 0 : layer]; }

  // The slot for `key`: a free one, or the victim's, which leaves.
  std::optional<Placement> make_room(ExpertKey key, const Prefetch* wish) {
    std::vector<std::int32_t>& free = pool(key.layer).free;
    if (!free.empty()) {
      const std::int32_t slot = free.back();
      free.pop_back();
      return Placement{slot, std::nullopt};
    }
    std::optional<ExpertKey> victim;
    const View all(*this, key.layer, false), passing(*this, key.layer, true);
    const std::int32_t kept = streams(key.layer) ? transient_slots(key.layer) - 1 : 0;
    if (pool(key.layer).transient > kept) victim = policy->victim(passing, key);
    if (!victim) victim = policy->victim(all, key);
    if (!victim) return std::nullopt;
    if (!all.evictable(*victim)) {
      throw StateError("the eviction policy " + policy->name() + " named " + expert_name(*victim) +
                       ", which may not be evicted for " + expert_name(key) +
                       "; a victim must satisfy CacheView::evictable");
    }
    if (wish && !policy->yields(*victim, *wish)) return std::nullopt;
    Entry& gone = entries[geometry.index(*victim)];
    const std::int32_t slot = gone.slot;
    ordinary(*victim, gone);
    gone = {};
    --resident;
    policy->left(*victim);
    return Placement{slot, victim};
  }

  std::int32_t transient_slots(std::int32_t layer) {
    return std::max(geometry.top_k, pool(layer).slots / kTransientPart);
  }

  bool streams(std::int32_t layer) const { return streaming && streaming_layer == layer; }

  void ordinary(ExpertKey key, Entry& entry) {
    if (entry.transient) --pool(key.layer).transient;
    entry.transient = false;
  }

  void make_absent(ExpertKey key, Entry& entry) {
    pool(key.layer).free.push_back(entry.slot);
    ordinary(key, entry);
    entry = {};
    policy->left(key);
  }

  const Geometry geometry;
  const PoolScope scope;
  const std::unique_ptr<EvictionPolicy> policy;
  std::vector<Entry> entries;  // by Geometry::index
  std::vector<Pool> pools;     // one, or one per layer
  std::int32_t slots = 0;
  std::int32_t resident = 0;
  bool streaming = false;
  std::int32_t streaming_layer = -1;
  std::vector<float> shares;  // [experts_per_layer] of the step that streams
};

Cache::Cache(const Geometry& geometry, std::int32_t slots, PoolScope scope,
             std::unique_ptr<EvictionPolicy> policy)
    : impl_(std::make_unique<Impl>(geometry, slots, scope, std::move(policy))) {}

Cache::~Cache() = default;

Residency Cache::state(ExpertKey key) const { return impl_->entry(key).state; }

std::int32_t Cache::slot(ExpertKey key) const { return impl_->entry(key).slot; }

std::int32_t Cache::slots() const { return impl_->slots; }

std::int32_t Cache::pool_slots(std::int32_t layer) const {
  if (!impl_->geometry.contains({layer, 0})) impl_->refuse_unknown({layer, 0});
  return impl_->pool(layer).slots;
}

std::int32_t Cache::resident_count() const { return impl_->resident; }

std::optional<Cache::Placement> Cache::admit(ExpertKey key, const Prefetch* wish) {
  Impl::Entry& entry = impl_->entry(key);
  if (entry.state != Residency::absent) {
    refuse(key, entry.state, "admit", "only an absent expert can be admitted");
  }
  const std::optional<Placement> placement = impl_->make_room(key, wish);
  if (!placement) return std::nullopt;
  entry.slot = placement->slot;
  entry.state = Residency::queued;
  if (placement->evicted && !wish && impl_->streams(key.layer) && impl_->policy->shielded()) {
    entry.transient = true;
    ++impl_->pool(key.layer).transient;
  }
  impl_->policy->arrived(key);
  return placement;
}

void Cache::loading(ExpertKey key) {
  Impl::Entry& entry = impl_->entry(key);
  if (entry.state != Residency::queued) {
    refuse(key, entry.state, "start loading", "admit it first, and start it once");
  }
  entry.state = Residency::loading;
}

void Cache::landed(ExpertKey key) {
  Impl::Entry& entry = impl_->entry(key);
  if (entry.state != Residency::loading) {
    refuse(key, entry.state, "land", "only a loading expert can land");
  }
  entry.state = Residency::resident;
  ++impl_->resident;
}

void Cache::abandon(ExpertKey key) {
  Impl::Entry& entry = impl_->entry(key);
  if (entry.state != Residency::queued && entry.state != Residency::loading) {
    refuse(key, entry.state, "abandon", "only a queued or loading expert can be abandoned");
  }
  impl_->make_absent(key, entry);
}

void Cache::drop(ExpertKey key) {
  Impl::Entry& entry = impl_->entry(key);
  if (entry.state != Residency::resident) {
    refuse(key, entry.state, "drop", "only a resident expert without leases can be dropped");
  }
  --impl_->resident;
  impl_->make_absent(key, entry);
}

void Cache::tick(std::int32_t layer) {
  if (!impl_->geometry.contains({layer, 0})) impl_->refuse_unknown({layer, 0});
  impl_->streaming = false;
  impl_->policy->tick(layer);
}

void Cache::stream(std::int32_t layer, std::span<const float> shares) {
  if (std::ssize(shares) != impl_->geometry.experts_per_layer) {
    throw InvalidArgument("a step that streams names the share of each of " +
                          std::to_string(impl_->geometry.experts_per_layer) + " experts, not of " +
                          std::to_string(shares.size()));
  }
  tick(layer);
  impl_->streaming = true;
  impl_->streaming_layer = layer;
  impl_->shares.assign(shares.begin(), shares.end());
}

std::int32_t Cache::transient_slots(std::int32_t layer) const {
  if (!impl_->geometry.contains({layer, 0})) impl_->refuse_unknown({layer, 0});
  return impl_->transient_slots(layer);
}

void Cache::used(ExpertKey key) {
  Impl::Entry& entry = impl_->entry(key);
  if (entry.state == Residency::absent) {
    refuse(key, entry.state, "count a use of", "admit it before it is used");
  }
  if (impl_->streams(key.layer)) {
    impl_->policy->streamed(key, impl_->shares[key.expert]);
    return;
  }
  impl_->ordinary(key, entry);
  impl_->policy->used(key);
}

void Cache::lease(ExpertKey key) {
  Impl::Entry& entry = impl_->entry(key);
  if (entry.state != Residency::resident && entry.state != Residency::leased) {
    refuse(key, entry.state, "lease", "wait until it has landed");
  }
  entry.state = Residency::leased;
  ++entry.leases;
}

void Cache::release(ExpertKey key) {
  Impl::Entry& entry = impl_->entry(key);
  if (entry.state != Residency::leased) {
    refuse(key, entry.state, "release", "every release needs a lease of its own");
  }
  if (--entry.leases == 0) entry.state = Residency::resident;
}

EvictionPolicy& Cache::policy() { return *impl_->policy; }

}  // namespace prophet
