#include "policy/eviction_policy.h"

#include <gmock/gmock.h>

#include "core/error.h"
#include "policy/policy_conformance.h"

namespace prophet::testing {
namespace {

std::vector<Enrolled> all_policies() {
  std::vector<Enrolled> enrolled;
  for (const std::string& name : eviction_policy_names()) {
    enrolled.push_back(
        {name, [name](const Geometry& geometry) { return make_eviction_policy(name, geometry); }});
  }
  return enrolled;
}

std::string test_name(const ::testing::TestParamInfo<Enrolled>& info) {
  std::string name = info.param.name;
  std::ranges::replace(name, '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Registered, PolicyConformance, ::testing::ValuesIn(all_policies()),
                         test_name);

TEST(EvictionPolicyRegistry, KnowsThePublishedNames) {
  EXPECT_THAT(eviction_policy_names(),
              ::testing::ElementsAre("lru", "lfu", "lfru", "least-stale", "lru-foreseen",
                                     "activation-matrix", "expert-map", "expected-next-use"));
}

TEST(EvictionPolicyRegistry, RefusesAnUnknownNameAndListsTheKnownOnes) {
  try {
    make_eviction_policy("fifo", {1, 4, 2});
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("'fifo'"));
    for (const std::string& name : eviction_policy_names()) {
      EXPECT_THAT(error.what(), ::testing::HasSubstr(name));
    }
  }
}

TEST(EvictionPolicyRegistry, RefusesGeometriesThatCannotBe) {
  for (const Geometry bad :
       {Geometry{0, 4, 2}, Geometry{2, 0, 1}, Geometry{2, 4, 0}, Geometry{2, 4, 5},
        Geometry{-1, 4, 2}, Geometry{1 << 16, 1 << 16, 2}}) {
    for (const std::string& name : eviction_policy_names()) {
      EXPECT_THROW(make_eviction_policy(name, bad), InvalidArgument) << name;
    }
  }
}

}  // namespace
}  // namespace prophet::testing
