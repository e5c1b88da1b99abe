#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "core/error.h"
#include "kernels/expert_ffn.h"

namespace prophet {
namespace {

using ::testing::HasSubstr;

TEST(KernelIsa, PortableIsAlwaysThereAndLast) {
  const auto names = kernel_isas();
  ASSERT_FALSE(names.empty());
  EXPECT_EQ(names.back(), "portable");
}

TEST(KernelIsa, CanBeChosenByName) {
  const std::string before{kernel_isa()};
  for (const std::string& name : kernel_isas()) {
    set_kernel_isa(name);
    EXPECT_EQ(kernel_isa(), name);
  }
  set_kernel_isa(before);
}

TEST(KernelIsa, AnUnknownNameIsRefusedAndChangesNothing) {
  const std::string before{kernel_isa()};
  try {
    set_kernel_isa("sse9");
    FAIL() << "sse9 was accepted";
  } catch (const InvalidArgument& error) {
    EXPECT_THAT(error.what(), HasSubstr("'sse9'"));
    EXPECT_THAT(error.what(), HasSubstr("portable"));
  }
  EXPECT_EQ(kernel_isa(), before);
}

// The environment is read at first use, so each value needs a process of its own.
class KernelIsaDeathTest : public ::testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
  void TearDown() override { unsetenv("PROPHET_ISA"); }

  static void exit_well_if_isa_is(const std::string& expected) {
    std::exit(kernel_isa() == expected ? 0 : 1);
  }
};

TEST_F(KernelIsaDeathTest, EnvironmentLowersIt) {
  for (const std::string& name : kernel_isas()) {
    setenv("PROPHET_ISA", name.c_str(), 1);
    EXPECT_EXIT(exit_well_if_isa_is(name), ::testing::ExitedWithCode(0), "") << name;
  }
}

TEST_F(KernelIsaDeathTest, EmptyOrTooHighMeansTheBest) {
  const std::string best = kernel_isas().front();
  setenv("PROPHET_ISA", "", 1);
  EXPECT_EXIT(exit_well_if_isa_is(best), ::testing::ExitedWithCode(0), "");
  setenv("PROPHET_ISA", "avx512", 1);
  EXPECT_EXIT(exit_well_if_isa_is(best), ::testing::ExitedWithCode(0), "");
}

TEST_F(KernelIsaDeathTest, AnUnknownNameInTheEnvironmentIsNamed) {
  setenv("PROPHET_ISA", "fastest", 1);
  const auto report = [] {
    try {
      kernel_isa();
    } catch (const InvalidArgument& error) {
      const std::string said = error.what();
      const std::string expected =
          "PROPHET_ISA is 'fastest'; set it to avx512, avx2 or portable, or leave it unset";
      std::exit(said == expected ? 0 : 2);
    }
    std::exit(1);
  };
  EXPECT_EXIT(report(), ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace prophet
