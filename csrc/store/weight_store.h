// Where do the bytes of an expert lie?
//
// An expert is a list of *pieces* (tensors such as gate, up, down), in an order the model
// adapter chose. A store answers which runs of which files to read (extents) and where in
// the slot each piece then begins. It never reads.
#pragma once

#include <cstdint>
#include <span>

#include "core/types.h"

namespace prophet {

class WeightStore {
 public:
  virtual ~WeightStore() = default;
  virtual const Geometry& geometry() const = 0;

  // Bytes a slot needs to hold any expert, a multiple of the alignment.
  virtual std::uint64_t slot_bytes() const = 0;

  // Bytes of the expert's own tensors, without alignment slack.
  virtual std::uint64_t expert_bytes(ExpertKey key) const = 0;

  // The runs to read, in file order, never overlapping in the slot. Valid while the store lives.
  virtual std::span<const Extent> where(ExpertKey key) const = 0;

  virtual int pieces() const = 0;
  // Where piece `piece` begins inside the slot once `where(key)` has been read, and its length.
  virtual std::uint64_t piece_at(ExpertKey key, int piece) const = 0;
  virtual std::uint64_t piece_bytes(ExpertKey key, int piece) const = 0;

  // Where byte `at` of slot `slot` lies in an arena of `slots` slots. An extent stays in one run.
  // Slots stand one after the other, unless a store says otherwise.
  virtual std::uint64_t place(std::int32_t slot, std::uint64_t at, std::int32_t /*slots*/) const {
    return std::uint64_t(slot) * slot_bytes() + at;
  }
};

}  // namespace prophet
