// Whatever is wrong with library, driver or device: zero devices and a sentence.
#include "device/cuda/cuda_library.h"

#include <cstdlib>
#include <fstream>

#include "core/error.h"
#include "emulated_cuda.h"

namespace prophet {
namespace {

using ::prophet::testing_cuda::EmulatedCuda;
using ::prophet::testing_cuda::kEmulatedLibrary;

void expect_reason(const CudaLibrary& library, const std::string& part) {
  EXPECT_EQ(library.devices(), 0);
  EXPECT_NE(library.reason().find(part), std::string::npos) << library.reason();
  EXPECT_EQ(library.reason().back(), '.');
  EXPECT_THROW(library.device(), DeviceError);
  EXPECT_THROW(library.info(), DeviceError);
}

TEST(CudaLibrary, AMissingFile) {
  const auto library = CudaLibrary::open("/nowhere/libprophet_cuda.so");
  EXPECT_FALSE(library->loaded());
  EXPECT_THROW(library->api(), DeviceError);
  EXPECT_EQ(library->table("prophet_cuda_api"), nullptr);
  expect_reason(*library, "There is no file /nowhere/libprophet_cuda.so");
}

TEST(CudaLibrary, NoLibraryInThisBuild) {
  const char* named = std::getenv("PROPHET_CUDA_LIB");
  const std::string before = named ? named : "";
  unsetenv("PROPHET_CUDA_LIB");
  const auto library = CudaLibrary::open();
  if (named) setenv("PROPHET_CUDA_LIB", before.c_str(), 1);
  if (library->loaded()) GTEST_SKIP() << "processor has a CUDA library beside this program";
  expect_reason(*library, "no CUDA library");
  expect_reason(*library, "CUDA_HOME");
}

TEST(CudaLibrary, AFileThatIsNoLibrary) {
  const std::string path = ::testing::TempDir() + "no_library.so";
  std::ofstream(path) << "words";
  expect_reason(*CudaLibrary::open(path), "did not load");
}

TEST(CudaLibrary, ALibraryOfSomethingElse) {
  expect_reason(*CudaLibrary::open("/proc/self/exe"),
                "libr");  // not loadable, or without the table
}

TEST_F(EmulatedCuda, ADeviceIsFoundAndDescribed) {
  const auto library = CudaLibrary::open(kEmulatedLibrary);
  EXPECT_EQ(library->devices(), 1);
  EXPECT_EQ(library->device(), 0);
  EXPECT_EQ(library->reason(), "");
  const CudaDeviceInfo& info = library->info();
  EXPECT_EQ(info.emulated, 1);
  EXPECT_EQ(info.major * 10 + info.minor, 80);
  EXPECT_EQ(info.memory_total, std::uint64_t{1} << 30);
  EXPECT_EQ(info.memory_free, info.memory_total);
  EXPECT_STREQ(info.pci_bus_id, "0000:00:00.0");
}

TEST_F(EmulatedCuda, NoDriver) {
  machine({{"DRIVER", "0"}});
  expect_reason(*CudaLibrary::open(kEmulatedLibrary), "No NVIDIA driver is installed");
}

TEST_F(EmulatedCuda, ADriverTooOld) {
  machine({{"DRIVER", "11040"}});
  const auto library = CudaLibrary::open(kEmulatedLibrary);
  expect_reason(*library, "supports CUDA 11.4");
  expect_reason(*library, "update the driver");
}

TEST_F(EmulatedCuda, NoDeviceShown) {
  machine({{"DEVICES", "0"}});
  expect_reason(*CudaLibrary::open(kEmulatedLibrary), "CUDA_VISIBLE_DEVICES");
}

TEST_F(EmulatedCuda, NoCodeForTheArchitecture) {
  machine({{"CAPABILITY", "7.5"}, {"IMAGE", "0"}});
  const auto library = CudaLibrary::open(kEmulatedLibrary);
  expect_reason(*library, "compute capability 7.5");
  expect_reason(*library, "CMAKE_CUDA_ARCHITECTURES=75");
}

TEST_F(EmulatedCuda, ADeviceThatIsTaken) {
  machine({{"FAIL", "cudaSetDevice:0=46"}});
  expect_reason(*CudaLibrary::open(kEmulatedLibrary), "busy or unavailable");
}

TEST_F(EmulatedCuda, EveryCallOfOpeningMayFail) {
  machine({});
  CudaLibrary::open(kEmulatedLibrary);
  const std::uint64_t calls = control_->calls("");
  ASSERT_GT(calls, 5u);
  for (std::uint64_t n = 1; n <= calls; ++n) {
    machine({{"FAIL", ("*:" + std::to_string(n) + "=999").c_str()}});
    const auto library = CudaLibrary::open(kEmulatedLibrary);
    EXPECT_TRUE(library->devices() == 1 || !library->reason().empty()) << n;
    machine({});
    EXPECT_EQ(CudaLibrary::open(kEmulatedLibrary)->devices(), 1);
  }
}

TEST_F(EmulatedCuda, ErrorsAreSentences) {
  cuda_check(api(), 0, "nothing");
  try {
    cuda_check(api(), kCudaOutOfMemory, "allocating 3.2 GB of device memory");
    FAIL();
  } catch (const DeviceError& error) {
    EXPECT_EQ(std::string(error.what())
                  .find("allocating 3.2 GB of device memory failed: out of "
                        "memory (cudaErrorMemoryAllocation). "),
              0u)
        << error.what();
  }
}

}  // namespace
}  // namespace prophet
