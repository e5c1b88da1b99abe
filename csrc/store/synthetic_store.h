// A store without files: consecutive experts of one size in one virtual file.
//
// Expert i (in Geometry::index order) is one piece of `expert_bytes` bytes at offset
// i * slot_bytes() of file 0. Goes with device/manual/manual_backend.h, whose files hold
// whatever a test says.
#pragma once

#include <vector>

#include "store/weight_store.h"

namespace prophet {

class SyntheticStore final : public WeightStore {
 public:
  // Throws InvalidArgument: no experts, an expert of 0 bytes, an alignment that is no power of two.
  SyntheticStore(Geometry geometry, std::uint64_t expert_bytes, std::uint64_t alignment = 1);

  const Geometry& geometry() const override { return geometry_; }
  std::uint64_t slot_bytes() const override { return slot_bytes_; }
  std::uint64_t expert_bytes(ExpertKey) const override { return expert_bytes_; }
  std::span<const Extent> where(ExpertKey key) const override;
  int pieces() const override { return 1; }
  std::uint64_t piece_at(ExpertKey, int) const override { return 0; }
  std::uint64_t piece_bytes(ExpertKey, int) const override { return expert_bytes_; }

  // Size of the virtual file.
  std::uint64_t file_bytes() const { return slot_bytes_ * extents_.size(); }

 private:
  Geometry geometry_;
  std::uint64_t expert_bytes_, slot_bytes_;
  std::vector<Extent> extents_;  // one per expert
};

}  // namespace prophet
