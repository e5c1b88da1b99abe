// Where does each expert stand? Slots, the residency state machine, leases.
//
//            admit            loading           landed            lease
//   absent ─────────▶ queued ─────────▶ loading ───────▶ resident ◀────▶ leased
//     ▲                 │ cancel           │ failed         │ evicted by a later admit
//     └─────────────────┴──────────────────┴────────────────┘
//
//  * queued:   a slot is reserved, no byte has been asked for; may be cancelled for free.
//  * loading:  chunks are on their way; the slot's content is undefined; never a victim.
//  * resident: all chunks landed; the only state a lease can start from, and the only
//              state a victim can be in.
//  * leased:   at least one lease; a leased expert is never a victim.
// A failed load returns to absent: its slot never counts as weights.
//
// Streaming: a step over many tokens asks for more of a layer than the cache can keep. Policies are
// told how many of the tokens chose each expert. Where the policy is shielded, experts that such a
// step brings at the cost of others are transient: beyond transient_slots(), they take one
// another's slots, and later misses take theirs first, so that what other steps need stays. A use
// by a step that does not stream makes a transient expert an ordinary one.
//
// Pools: `per_layer` divides the slots evenly among layers (a layer's experts compete only with
// each other); `global` lets any slot hold any expert. The cache knows no tier, no file, no thread:
// its owner (the engine) holds the lock.
//
// A call that the expert's state forbids throws StateError and changes nothing; an expert or layer
// that does not exist is InvalidArgument.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/types.h"
#include "policy/eviction_policy.h"

namespace prophet {

enum class Residency : std::uint8_t { absent, queued, loading, resident, leased };
enum class PoolScope : std::uint8_t { global, per_layer };

class Cache {
 public:
  // Throws InvalidArgument when a pool would have fewer slots than top_k: one token could not be
  // served. per_layer gives the first (slots % layers) layers one slot more; slots above the number
  // of experts are not used.
  Cache(const Geometry& geometry, std::int32_t slots, PoolScope scope,
        std::unique_ptr<EvictionPolicy> policy);
  ~Cache();

  struct Placement {
    std::int32_t slot = -1;
    std::optional<ExpertKey> evicted;  // the expert whose slot this was
  };

  Residency state(ExpertKey key) const;
  std::int32_t slot(ExpertKey key) const;  // -1 when absent
  std::int32_t slots() const;              // those that are used: at most the number of experts
  std::int32_t pool_slots(std::int32_t layer) const;  // slots the layer can use at most
  std::int32_t resident_count() const;                // resident or leased

  // absent → queued: reserves a slot, evicting if none is free. Nothing when every slot of the
  // pool is leased, queued or loading, or the policy refuses (see EvictionPolicy::victim and, for a
  // wish, EvictionPolicy::yields). A policy that names an expert which may not go is a StateError.
  std::optional<Placement> admit(ExpertKey key) { return admit(key, nullptr); }
  std::optional<Placement> admit_wish(const Prefetch& wish) { return admit(wish.key, &wish); }
  void loading(ExpertKey key);  // queued → loading
  void landed(ExpertKey key);   // loading → resident
  void abandon(ExpertKey key);  // queued or loading → absent (cancelled or failed)
  void drop(ExpertKey key);     // resident → absent: given up without an incoming expert

  void tick(std::int32_t layer);  // forwarded to the policy, once per layer step
  // In place of tick, for a step that streams: until the next tick or stream. `shares[e]` of its
  // tokens chose expert e. Throws InvalidArgument when they are not one for each expert.
  void stream(std::int32_t layer, std::span<const float> shares);
  // How many transient experts the layer's pool keeps before they replace one another: an eighth of
  // its slots, at least top_k.
  std::int32_t transient_slots(std::int32_t layer) const;
  void used(ExpertKey key);     // the router asked for it; any state but absent
  void lease(ExpertKey key);    // resident → leased, or one more lease
  void release(ExpertKey key);  // one lease less

  EvictionPolicy& policy();

 private:
  std::optional<Placement> admit(ExpertKey key, const Prefetch* wish);

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace prophet
