// Brings wished experts no further than the staging tier: what is likely enough to be read early,
// and not likely enough for a slot.
//
// A wish that is restated while its bytes are there, or on their way, starts nothing. One that is
// dropped starts no further chunk. A failed read ends the wish without a word: a demand for the
// expert will meet the same failure, and say so.
//
// Not thread-safe: the engine holds the lock. Nothing here blocks.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "core/types.h"
#include "device/backend.h"
#include "store/weight_store.h"

namespace prophet {

class Stager {
 public:
  // Where the backend has no staging tier, nothing is ever wished.
  Stager(const WeightStore& store, Backend& backend, std::uint64_t chunk_bytes, int chunks);

  // The whole set from now on, best first.
  void want(std::span<const Prefetch> wanted);
  // `key` is on its way to fast memory: its wish is over.
  void forget(ExpertKey key);
  void collect();
  // At most `chunks` are in flight.
  void start();

  bool active() const { return !wishes_.empty() || !moving_.empty(); }
  void tickets(std::vector<Ticket>& out) const;

 private:
  struct Transfer {
    ExpertKey key;
    bool cancelled = false;
    std::size_t extent = 0;  // next chunk: this extent ...
    std::uint64_t done = 0;  // ... from this byte of it
    std::vector<Ticket> chunks;
  };
  bool start_chunk(Transfer& transfer);  // false when none is left
  std::size_t in_flight() const;

  const WeightStore& store_;
  Backend& backend_;
  const std::uint64_t chunk_bytes_;
  const std::size_t most_;
  std::vector<ExpertKey> wishes_;  // not started, best last
  std::vector<Transfer> moving_;
  std::vector<ExpertKey> over_;  // wished, and nothing is left to do
};

}  // namespace prophet
