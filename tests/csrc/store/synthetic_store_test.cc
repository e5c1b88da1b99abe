#include "store/synthetic_store.h"

#include "core/error.h"
#include "store/store_conformance.h"

namespace prophet {
namespace {

using testing_store::StoreCase;
using testing_store::StoreConformance;
using testing_store::StoreUnderTest;

StoreUnderTest make(std::uint64_t expert_bytes, std::uint64_t alignment) {
  StoreUnderTest subject;
  auto store = std::make_unique<SyntheticStore>(Geometry{3, 4, 2}, expert_bytes, alignment);
  const std::uint64_t stride = store->slot_bytes();
  subject.alignment = alignment;
  subject.file_bytes = {store->file_bytes()};
  subject.piece = [=](ExpertKey key, int) {
    return testing_store::TruePiece{0, std::uint64_t(key.layer * 4 + key.expert) * stride,
                                    expert_bytes};
  };
  subject.store = std::move(store);
  return subject;
}

INSTANTIATE_TEST_SUITE_P(Synthetic, StoreConformance,
                         testing::Values(StoreCase{"Bytes", [] { return make(1001, 1); }},
                                         StoreCase{"Pages", [] { return make(9000, 4096); }}),
                         StoreCase::name_of);

TEST(SyntheticStore, RefusesWhatIsNoStore) {
  EXPECT_THROW(SyntheticStore({0, 4, 1}, 100), InvalidArgument);
  EXPECT_THROW(SyntheticStore({2, 0, 1}, 100), InvalidArgument);
  EXPECT_THROW(SyntheticStore({2, 4, 1}, 0), InvalidArgument);
  EXPECT_THROW(SyntheticStore({2, 4, 1}, 100, 3), InvalidArgument);
}

}  // namespace
}  // namespace prophet
