#include "store/extent_store.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <random>

#include "core/error.h"
#include "store/store_conformance.h"

namespace prophet {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;
using testing_store::read_expert;
using testing_store::StoreCase;
using testing_store::StoreConformance;
using testing_store::StoreUnderTest;

StoreUnderTest make(Geometry geometry, const std::vector<std::uint64_t>& sizes,
                    const std::vector<Piece>& pieces, int per_expert, std::uint64_t alignment,
                    Arrangement arrangement = Arrangement::slots) {
  std::vector<FileInfo> files;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    files.push_back({"shard-" + std::to_string(i), sizes[i], 0});
  }
  StoreUnderTest subject;
  subject.store =
      std::make_unique<ExtentStore>(geometry, files, pieces, per_expert, alignment, arrangement);
  subject.alignment = alignment;
  subject.file_bytes = sizes;
  subject.piece = [=](ExpertKey key, int piece) {
    const Piece& own = pieces[static_cast<std::size_t>(geometry.index(key) * per_expert + piece)];
    return testing_store::TruePiece{own.file, own.offset, own.bytes};
  };
  return subject;
}

// As checkpoints name them: gate, down, up of each expert, one tensor after the other.
StoreUnderTest per_expert(std::uint64_t alignment) {
  const Geometry geometry{2, 5, 2};
  std::vector<Piece> pieces;
  std::uint64_t at = 1234 + 8;
  for (int i = 0; i < geometry.total(); ++i) {
    for (std::uint64_t bytes : {1000u, 3000u, 1002u}) {
      pieces.push_back({0, at, bytes});
      at += bytes;
    }
    at += i % 3 * 5000;  // other tensors lie between
  }
  return make(geometry, {at}, pieces, 3, alignment);
}

// Fused tensors: all gate_up matrices of a layer in one tensor, all down ones in another, which
// may lie in another shard.
StoreUnderTest fused(std::uint64_t alignment) {
  const Geometry geometry{3, 4, 2};
  const std::uint64_t gate_up = 4001, down = 2003;
  std::vector<Piece> pieces;
  for (std::uint64_t i = 0; i < 12; ++i) {
    const std::uint64_t layer = i / 4, expert = i % 4;
    pieces.push_back({1, 77 + (layer * 4 + expert) * gate_up, gate_up});
    pieces.push_back({layer == 2 ? 0 : 1, 60000 + (layer * 4 + expert) * down, down});
  }
  return make(geometry, {90000, 60000 + 12 * down}, pieces, 2, alignment);
}

// Pieces of one expert that share bytes (tied), wholly, partly, or with another expert.
StoreUnderTest tied(std::uint64_t alignment) {
  const Geometry geometry{1, 4, 1};
  const std::vector<Piece> pieces = {
      {0, 100, 900}, {0, 100, 900},   {0, 500, 100},  //
      {0, 100, 900}, {0, 700, 5000},  {0, 3, 1},      //
      {0, 9000, 10}, {0, 9010, 4000}, {0, 20000, 1},  //
      {1, 0, 4096},  {1, 4096, 4096}, {1, 12288, 4096},
  };
  return make(geometry, {20001, 16384}, pieces, 3, alignment);
}

// All of one piece, then all of the other.
StoreUnderTest planes(std::uint64_t alignment) {
  const Geometry geometry{2, 3, 1};
  std::vector<Piece> pieces;
  for (std::uint64_t i = 0; i < 6; ++i) {
    pieces.push_back({0, 4096 + i * 8192, 8192});
    pieces.push_back({0, 4096 + 6 * 8192 + i * 4096, 4096});
  }
  return make(geometry, {4096 + 6 * 12288}, pieces, 2, alignment, Arrangement::planes);
}

StoreUnderTest at_random(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  const Geometry geometry{std::int32_t(1 + random() % 3), std::int32_t(1 + random() % 4), 1};
  const int per_expert = int(1 + random() % 4);
  const std::uint64_t alignment = std::uint64_t{1} << random() % 13;
  std::vector<std::uint64_t> sizes;
  for (std::uint64_t i = 0; i < 1 + random() % 3; ++i) sizes.push_back(1 + random() % 40000);
  std::vector<Piece> pieces;
  for (int i = 0; i < geometry.total() * per_expert; ++i) {
    const auto file = random() % sizes.size();
    const std::uint64_t offset = random() % sizes[file];
    const std::uint64_t most = std::min<std::uint64_t>(sizes[file] - offset, 6000);
    pieces.push_back({static_cast<std::int32_t>(file), offset, 1 + random() % most});
  }
  return make(geometry, sizes, pieces, per_expert, alignment);
}

std::vector<StoreCase> cases() {
  std::vector<StoreCase> all;
  for (std::uint64_t alignment : {1u, 512u, 4096u}) {
    const std::string suffix = std::to_string(alignment);
    all.push_back({"PerExpert" + suffix, [=] { return per_expert(alignment); }});
    all.push_back({"Fused" + suffix, [=] { return fused(alignment); }});
    all.push_back({"Tied" + suffix, [=] { return tied(alignment); }});
    all.push_back({"Planes" + suffix, [=] { return planes(alignment); }});
  }
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    all.push_back({"Random" + std::to_string(seed), [=] { return at_random(seed); }});
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Extents, StoreConformance, testing::ValuesIn(cases()), StoreCase::name_of);

TEST(ExtentStore, NeighboursAreReadAsOneRun) {
  const auto subject = per_expert(4096);
  for (std::int32_t i = 0; i < 10; ++i) {
    EXPECT_EQ(subject.store->where(subject.store->geometry().key(i)).size(), 1u);
  }
}

// A packed file: aligned experts are read without a byte of slack and begin with the slot.
TEST(ExtentStore, AlignedExpertsCostNoSlack) {
  const Geometry geometry{2, 3, 1};
  std::vector<Piece> pieces;
  for (std::uint64_t i = 0; i < 6; ++i) {
    pieces.push_back({0, 4096 + i * 8192, 6144});
    pieces.push_back({0, 4096 + i * 8192 + 6144, 2048});
  }
  const auto subject = make(geometry, {4096 + 6 * 8192}, pieces, 2, 4096);
  EXPECT_EQ(subject.store->slot_bytes(), 8192u);
  for (std::int32_t i = 0; i < 6; ++i) {
    const ExpertKey key = geometry.key(i);
    ASSERT_EQ(subject.store->where(key).size(), 1u);
    EXPECT_EQ(subject.store->where(key)[0].bytes, subject.store->expert_bytes(key));
    EXPECT_EQ(subject.store->piece_at(key, 0), 0u);
    EXPECT_EQ(subject.store->piece_at(key, 1), 6144u);
  }
}

// Even where files need no alignment, runs begin on cache lines.
TEST(ExtentStore, RunsBeginOnCacheLinesOfTheSlot) {
  const auto subject = fused(1);
  for (std::int32_t i = 0; i < 12; ++i) {
    for (const Extent& extent : subject.store->where(subject.store->geometry().key(i))) {
      EXPECT_EQ(extent.at % 64, 0u);
    }
  }
  EXPECT_EQ(subject.store->slot_bytes() % 64, 0u);
}

// Direct reads at any offset of the file still go to whole pages of memory.
TEST(ExtentStore, DirectReadsBeginOnPagesOfTheSlot) {
  const auto subject = fused(512);
  for (std::int32_t i = 0; i < 12; ++i) {
    for (const Extent& extent : subject.store->where(subject.store->geometry().key(i))) {
      EXPECT_EQ(extent.at % 4096, 0u);
      EXPECT_EQ(extent.offset % 512, 0u);
    }
  }
  EXPECT_EQ(subject.store->slot_bytes() % 4096, 0u);
}

// In planes each piece of all slots is one dense array; every byte of the arena belongs to one
// slot.
TEST(ExtentStore, PlanesAreDenseArrays) {
  const auto subject = planes(512);
  const std::int32_t slots = 5;
  const WeightStore& store = *subject.store;
  EXPECT_EQ(store.slot_bytes(), 12288u);
  std::vector<int> taken(store.slot_bytes() * slots);
  for (std::int32_t slot = 0; slot < slots; ++slot) {
    for (std::uint64_t at = 0; at < store.slot_bytes(); ++at) {
      ++taken.at(store.place(slot, at, slots));
    }
    EXPECT_EQ(store.place(slot, store.piece_at({0, 0}, 0), slots), slot * 8192u);
    EXPECT_EQ(store.place(slot, store.piece_at({1, 2}, 1), slots), slots * 8192u + slot * 4096u);
  }
  EXPECT_EQ(std::ranges::count(taken, 1), std::ssize(taken));
}

TEST(ExtentStore, PlanesRefusePiecesThatDoNotFit) {
  const std::vector<FileInfo> files = {{"packed", 1 << 20, 0}};
  const auto refused = [&](std::vector<Piece> pieces, std::uint64_t alignment,
                           const std::string& word) {
    EXPECT_THAT(
        [&] {
          ExtentStore({1, 2, 1}, files, pieces, 1, alignment, Arrangement::planes);
        },
        ThrowsMessage<InvalidArgument>(HasSubstr(word)));
  };
  refused({{0, 0, 512}, {0, 512, 1024}}, 512, "one length");
  refused({{0, 0, 512}, {0, 700, 512}}, 512, "whole units of 512");
  refused({{0, 0, 500}, {0, 512, 500}}, 512, "whole units of 512");
}

TEST(ExtentStore, RefusesCountsThatDoNotMatch) {
  const std::vector<FileInfo> files = {{"shard", 1000, 0}};
  const auto refused = [&](Geometry geometry, std::size_t pieces, int per_expert,
                           std::uint64_t alignment) {
    EXPECT_THROW(ExtentStore(geometry, files, std::vector<Piece>(pieces, Piece{0, 0, 10}),
                             per_expert, alignment),
                 InvalidArgument);
  };
  refused({2, 3, 1}, 5, 1, 1);
  refused({2, 3, 1}, 6, 2, 1);
  refused({2, 3, 1}, 0, 0, 1);
  refused({2, 3, 1}, 6, -1, 1);
  refused({0, 3, 1}, 0, 1, 1);
  refused({2, -3, 1}, 6, 1, 1);
  refused({1 << 20, 1 << 20, 1}, 6, 1, 1);
  for (std::uint64_t alignment : {std::uint64_t{0}, std::uint64_t{3}, std::uint64_t{1} << 63}) {
    refused({2, 3, 1}, 6, 1, alignment);
  }
}

TEST(ExtentStore, RefusesPiecesThatNoFileHolds) {
  const std::vector<FileInfo> files = {{"/models/shard-7", 1000, 0}};
  const auto refused = [&](Piece bad, const std::vector<std::string>& words) {
    std::vector<Piece> pieces(4, Piece{0, 0, 10});
    pieces[3] = bad;
    for (const std::string& word : words) {
      EXPECT_THAT(
          [&] {
            ExtentStore({2, 2, 1}, files, pieces, 1, 1);
          },
          ThrowsMessage<ReadError>(HasSubstr(word)));
    }
  };
  refused({0, 991, 10}, {"/models/shard-7", "expert 1 of layer 1", "991", "1000"});
  refused({0, 2000, 1}, {"/models/shard-7", "2000"});
  refused({0, 5, ~std::uint64_t{0}}, {"/models/shard-7"});
  refused({0, ~std::uint64_t{0}, 5}, {"/models/shard-7"});
  refused({0, 5, 0}, {"/models/shard-7", "expert 1 of layer 1", "empty"});
  refused({1, 0, 10}, {"file number 1", "expert 1 of layer 1"});
  refused({-1, 0, 10}, {"file number -1"});
}

}  // namespace
}  // namespace prophet
