#include "store/store_conformance.h"

#include <algorithm>
#include <set>
#include <utility>

namespace prophet::testing_store {

std::vector<std::byte> read_expert(const StoreUnderTest& subject, ExpertKey key) {
  std::vector<std::byte> slot(subject.store->slot_bytes(), std::byte{0});
  for (const Extent& extent : subject.store->where(key)) {
    const std::uint64_t size = subject.file_bytes.at(static_cast<std::size_t>(extent.file));
    EXPECT_LE(extent.at + extent.bytes, slot.size());
    const std::uint64_t end = std::min(extent.offset + extent.bytes, size);
    for (std::uint64_t offset = extent.offset; offset < end; ++offset) {
      slot.at(extent.at + (offset - extent.offset)) = byte_at(extent.file, offset);
    }
  }
  return slot;
}

std::vector<ExpertKey> StoreConformance::keys() const {
  std::vector<ExpertKey> keys;
  for (std::int32_t i = 0; i < store().geometry().total(); ++i) {
    keys.push_back(store().geometry().key(i));
  }
  return keys;
}

TEST_P(StoreConformance, EveryPieceIsWhereTheStoreSays) {
  for (ExpertKey key : keys()) {
    const std::vector<std::byte> slot = read_expert(subject_, key);
    for (int piece = 0; piece < store().pieces(); ++piece) {
      const TruePiece truth = subject_.piece(key, piece);
      ASSERT_EQ(store().piece_bytes(key, piece), truth.bytes);
      const std::uint64_t at = store().piece_at(key, piece);
      ASSERT_LE(at + truth.bytes, slot.size());
      for (std::uint64_t i = 0; i < truth.bytes; ++i) {
        ASSERT_EQ(slot[at + i], byte_at(truth.file, truth.offset + i))
            << "byte " << i << " of piece " << piece << " of expert " << key.layer << ","
            << key.expert;
      }
    }
  }
}

TEST_P(StoreConformance, ExtentsKeepTheRules) {
  const std::uint64_t unit = subject_.alignment;
  EXPECT_EQ(store().slot_bytes() % unit, 0u);
  for (ExpertKey key : keys()) {
    const auto extents = store().where(key);
    ASSERT_FALSE(extents.empty());
    std::uint64_t slot_end = 0;
    std::pair<std::int32_t, std::uint64_t> file_end{-1, 0};
    for (const Extent& extent : extents) {
      EXPECT_GT(extent.bytes, 0u);
      EXPECT_EQ(extent.offset % unit, 0u);
      EXPECT_EQ(extent.bytes % unit, 0u);
      EXPECT_EQ(extent.at % unit, 0u);
      EXPECT_GE(extent.at, slot_end) << "extents overlap in the slot";
      slot_end = extent.at + extent.bytes;
      EXPECT_LE(slot_end, store().slot_bytes());
      EXPECT_LT((std::pair{file_end.first, file_end.second}),
                (std::pair{extent.file, extent.offset}))
          << "not in file order";
      file_end = {extent.file, extent.offset + extent.bytes};
      const std::uint64_t size = subject_.file_bytes.at(static_cast<std::size_t>(extent.file));
      EXPECT_LT(extent.offset, size);
      EXPECT_LT(extent.offset + extent.bytes, size + unit) << "past the end by a unit or more";
    }
  }
}

// Against brute force: the units that hold a byte of a piece are read, once each, and no others.
TEST_P(StoreConformance, ReadsEachNeededUnitOnceAndNoOther) {
  const std::uint64_t unit = subject_.alignment;
  for (ExpertKey key : keys()) {
    std::set<std::pair<std::int32_t, std::uint64_t>> needed;
    std::uint64_t own_bytes = 0;
    for (int piece = 0; piece < store().pieces(); ++piece) {
      const TruePiece truth = subject_.piece(key, piece);
      own_bytes += truth.bytes;
      for (std::uint64_t u = truth.offset / unit; u * unit < truth.offset + truth.bytes; ++u) {
        needed.emplace(truth.file, u);
      }
    }
    EXPECT_EQ(store().expert_bytes(key), own_bytes);
    std::set<std::pair<std::int32_t, std::uint64_t>> read;
    for (const Extent& extent : store().where(key)) {
      for (std::uint64_t u = 0; u < extent.bytes / unit; ++u) {
        EXPECT_TRUE(read.emplace(extent.file, extent.offset / unit + u).second) << "read twice";
      }
    }
    EXPECT_EQ(read, needed);
  }
}

}  // namespace prophet::testing_store
