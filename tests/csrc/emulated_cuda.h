// The emulated CUDA library in C++ tests: a fresh machine for each test, and nothing left behind.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "cuda_emulation/control.h"
#include "device/cuda/cuda_library.h"

namespace prophet::testing_cuda {

#ifdef PROPHET_EMULATED_LIBRARY
constexpr const char* kEmulatedLibrary = PROPHET_EMULATED_LIBRARY;
#else
constexpr const char* kEmulatedLibrary = "";
#endif

// Settings (settings.h), counts and faults of the machine are as at its start before every test;
// after it, all that the test made must have been given back.
class EmulatedCuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!*kEmulatedLibrary)
      GTEST_SKIP() << "no CUDA toolkit: this build has no emulated CUDA library "
                      "(-DPROPHET_CUDA_EMULATION=ON)";
    library_ = CudaLibrary::open(kEmulatedLibrary);
    ASSERT_TRUE(library_->loaded()) << library_->reason();
    control_ = static_cast<const EmulationControl*>(library_->table("prophet_emulation"));
    ASSERT_NE(control_, nullptr);
    ASSERT_EQ(control_->size, sizeof(EmulationControl));
    machine({});
    for (const char* what : kKinds) before_[what] = control_->live(what);
    ASSERT_EQ(library_->api().use_device(0), 0);
  }

  void TearDown() override {
    if (!control_) return;
    machine({});
    for (const char* what : kKinds)
      EXPECT_EQ(control_->live(what), before_[what]) << what << ": made and not given back";
  }

  // A machine as by default but for these, newly started.
  void machine(std::initializer_list<std::pair<const char*, const char*>> changes) {
    for (const auto& [name, value] : kDefaults) control_->set(name, value);
    for (const auto& [name, value] : changes) ASSERT_TRUE(control_->set(name, value)) << name;
    control_->revive();
  }

  const CudaApi& api() const { return library_->api(); }

  std::shared_ptr<const CudaLibrary> library_;
  const EmulationControl* control_ = nullptr;

 private:
  static constexpr const char* kKinds[] = {"device", "pinned", "stream", "event", "graph"};
  static constexpr std::pair<const char*, const char*> kDefaults[] = {
      {"DEVICES", "1"},      {"DRIVER", "99000"},    {"CAPABILITY", "8.0"}, {"IMAGE", "1"},
      {"MEMORY_MB", "1024"}, {"PINNED_MB", "65536"}, {"GBPS", "0"},         {"LATENCY_US", "0"},
      {"SEED", "0"},         {"FAIL", ""},
  };
  std::map<std::string, std::uint64_t> before_;
};

}  // namespace prophet::testing_cuda
