#include "store/synthetic_store.h"

#include <string>

#include "core/error.h"

namespace prophet {

SyntheticStore::SyntheticStore(Geometry geometry, std::uint64_t expert_bytes,
                               std::uint64_t alignment)
    : geometry_(geometry), expert_bytes_(expert_bytes) {
  if (geometry.layers < 1 || geometry.experts_per_layer < 1 || expert_bytes == 0) {
    throw InvalidArgument("a store needs layers, experts and bytes, not " +
                          std::to_string(geometry.layers) + " x " +
                          std::to_string(geometry.experts_per_layer) + " experts of " +
                          std::to_string(expert_bytes) + " bytes");
  }
  if (alignment == 0 || (alignment & (alignment - 1)) != 0) {
    throw InvalidArgument("the alignment of reads is a power of two, not " +
                          std::to_string(alignment));
  }
  slot_bytes_ = (expert_bytes + alignment - 1) / alignment * alignment;
  for (std::int32_t i = 0; i < geometry.total(); ++i) {
    extents_.push_back({0, std::uint64_t(i) * slot_bytes_, slot_bytes_, 0});
  }
}

std::span<const Extent> SyntheticStore::where(ExpertKey key) const {
  return {&extents_[static_cast<std::size_t>(geometry_.index(key))], 1};
}

}  // namespace prophet
