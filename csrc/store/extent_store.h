// A store over existing files: every piece of every expert lies somewhere in a file.
//
// Serves checkpoint shards as they were downloaded (pieces at any offset) and packed files
// (one aligned run per expert) alike. Pieces that are neighbours in a file are read as one
// run; an unaligned run is read as its aligned superset, so a piece may begin some bytes
// into its slot. Where reads are aligned at all, runs and slots are whole pages of memory.
//
// In planes, the arena holds piece 0 of all slots, then piece 1 of all slots, and so on, each
// dense: [slots, ...] arrays, as grouped kernels of others want them; Engine::forward does not
// compute on these.
#pragma once

#include <vector>

#include "store/weight_store.h"

namespace prophet {

// One tensor of one expert: `bytes` bytes at `offset` of file number `file`.
struct Piece {
  std::int32_t file = 0;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
};

enum class Arrangement : std::uint8_t { slots, planes };

class ExtentStore final : public WeightStore {
 public:
  // `pieces` is [layers][experts_per_layer][pieces_per_expert], flat. `alignment` is a power of
  // two. Throws InvalidArgument when a count does not match, and ReadError when a piece passes the
  // end of its file or is empty: the sentence names the file, the expert and both numbers.
  // Planes ask for more (InvalidArgument): a piece is as long in every expert, and offsets and
  // lengths are multiples of the alignment.
  ExtentStore(Geometry geometry, const std::vector<FileInfo>& files,
              const std::vector<Piece>& pieces, int pieces_per_expert, std::uint64_t alignment,
              Arrangement arrangement = Arrangement::slots);

  const Geometry& geometry() const override { return geometry_; }
  std::uint64_t slot_bytes() const override { return slot_bytes_; }
  std::uint64_t expert_bytes(ExpertKey key) const override;
  std::span<const Extent> where(ExpertKey key) const override;
  int pieces() const override { return pieces_per_expert_; }
  std::uint64_t piece_at(ExpertKey key, int piece) const override;
  std::uint64_t piece_bytes(ExpertKey key, int piece) const override;
  std::uint64_t place(std::int32_t slot, std::uint64_t at, std::int32_t slots) const override;

 private:
  struct Placed {
    std::uint64_t at, bytes;
  };
  Geometry geometry_;
  int pieces_per_expert_;
  std::uint64_t slot_bytes_ = 0;
  std::vector<Placed> placed_;        // [expert][piece]
  std::vector<Extent> extents_;       // all experts, one after the other
  std::vector<std::uint32_t> first_;  // extents of expert i: first_[i] .. first_[i + 1]
  std::vector<Placed> planes_;        // [piece], where they stand in a slot; none without planes
};

}  // namespace prophet
