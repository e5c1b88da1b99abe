// What machine is emulated. From the environment when the library is loaded; a test may change it
// while no work is queued (control.h).
//
//   PROPHET_EMULATED_DEVICES=1        0: the driver shows none
//   PROPHET_EMULATED_DRIVER=13000     CUDA version that the driver supports; 0: no driver
//   PROPHET_EMULATED_CAPABILITY=8.0   compute capability
//   PROPHET_EMULATED_IMAGE=1          0: the library holds no code for the device
//   PROPHET_EMULATED_MEMORY_MB=1024   of each device
//   PROPHET_EMULATED_PINNED_MB=65536  page-locked host memory that the system allows
//   PROPHET_EMULATED_GBPS=0           of each copy engine, 1e9 bytes/s; 0: as fast as memory.
//                                     Timing tests: 2 at most, above that memcpy itself counts
//   PROPHET_EMULATED_LATENCY_US=0     of each copy
//   PROPHET_EMULATED_SEED=0           not 0: tasks start after random short delays
//   PROPHET_EMULATED_FAIL=            "cudaMalloc:3=2,cudaMemcpyAsync:5=719": the third cudaMalloc
//                                     returns 2; ":0=" means every call, "*:7=2" the 7th of all
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace prophet::emulation {

struct Settings {
  int devices = 1;
  int driver = 0;  // set from the toolkit's version
  int major = 8, minor = 0;
  bool image = true;
  std::size_t memory = std::size_t{1} << 30;
  std::size_t pinned = std::size_t{1} << 36;
  double bytes_per_second = 0;
  double latency_seconds = 0;
  std::uint64_t seed = 0;
  std::string fail;
};

// A copy of what is in force.
Settings settings();
// Sets one by the end of its name, such as "MEMORY_MB"; false: no such name.
bool set(const std::string& name, const std::string& value);

constexpr double kPageableShare = 0.4;  // of the bandwidth
constexpr std::size_t kSharedPerBlock = std::size_t{48} << 10;
constexpr std::size_t kSharedMost = std::size_t{99} << 10;  // by opting in; the least of sm_80..120
constexpr int kPriorities = 6;

}  // namespace prophet::emulation
