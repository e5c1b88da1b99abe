// What every store promises (store/weight_store.h): the tests are in store_conformance_test.cc. A
// store enrols with a case and one line:
//
//   INSTANTIATE_TEST_SUITE_P(Mine, StoreConformance, testing::Values(StoreCase{...}),
//                            StoreCase::name_of);
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "store/weight_store.h"

namespace prophet::testing_store {

// Where a piece of an expert truly lies, by what the store was made from.
struct TruePiece {
  std::int32_t file = 0;
  std::uint64_t offset = 0, bytes = 0;
};

struct StoreUnderTest {
  std::unique_ptr<WeightStore> store;
  std::uint64_t alignment = 1;
  std::vector<std::uint64_t> file_bytes;
  std::function<TruePiece(ExpertKey, int piece)> piece;
};

struct StoreCase {
  std::string name;
  std::function<StoreUnderTest()> make;
  static std::string name_of(const testing::TestParamInfo<StoreCase>& info) {
    return info.param.name;
  }
};

// A byte of a virtual file. Any function of both numbers would do.
inline std::byte byte_at(std::int32_t file, std::uint64_t offset) {
  const std::uint64_t mixed =
      (offset + 1) * 0x9E3779B97F4A7C15u + std::uint64_t(file) * 0xD1B54A33u;
  return std::byte(mixed >> 53);
}

// Reads one expert into a slot as a backend would; holds it to the rules of extents.
std::vector<std::byte> read_expert(const StoreUnderTest& subject, ExpertKey key);

class StoreConformance : public testing::TestWithParam<StoreCase> {
 protected:
  void SetUp() override { subject_ = GetParam().make(); }
  const WeightStore& store() const { return *subject_.store; }
  std::vector<ExpertKey> keys() const;

  StoreUnderTest subject_;
};

}  // namespace prophet::testing_store
