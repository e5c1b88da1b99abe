// Blocks per multiprocessor on architectures that are not here: cuda_occupancy.h with their limits,
// from the table of compute capabilities in the CUDA programming guide.
//
//   stdin   registers, threads, static and dynamic shared bytes, one kernel a line
//   stdout  blocks on each architecture of kArchitectures, 0: the launch would fail there
#include <cuda_runtime_api.h>
// After the runtime's own types.
#include <cuda_occupancy.h>

#include <cstdio>

namespace {

struct Architecture {
  int major, minor, threads, shared_kib, shared_most_kib, multiprocessors;
};

constexpr Architecture kArchitectures[] = {
    {8, 0, 2048, 164, 163, 108}, {8, 6, 1536, 100, 99, 84},   {8, 9, 1536, 100, 99, 128},
    {9, 0, 2048, 228, 227, 132}, {12, 0, 1536, 100, 99, 170},
};

int blocks(const Architecture& on, int registers, int threads, int fixed, int dynamic) {
  cudaOccDeviceProp device{};
  device.computeMajor = on.major;
  device.computeMinor = on.minor;
  device.maxThreadsPerBlock = 1024;
  device.maxThreadsPerMultiprocessor = on.threads;
  device.regsPerBlock = device.regsPerMultiprocessor = 65536;
  device.warpSize = 32;
  device.sharedMemPerBlock = 48 << 10;
  device.sharedMemPerMultiprocessor = std::size_t(on.shared_kib) << 10;
  device.sharedMemPerBlockOptin = std::size_t(on.shared_most_kib) << 10;
  device.reservedSharedMemPerBlock = 1024;
  device.numSms = on.multiprocessors;
  cudaOccFuncAttributes kernel{};
  kernel.maxThreadsPerBlock = 1024;
  kernel.numRegs = registers;
  kernel.sharedSizeBytes = std::size_t(fixed);
  kernel.partitionedGCConfig = PARTITIONED_GC_OFF;
  kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  kernel.maxDynamicSharedSizeBytes = std::size_t(dynamic);
  const cudaOccDeviceState state{};
  cudaOccResult result{};
  const auto error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state,
                                                             threads, std::size_t(dynamic));
  return error == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : 0;
}

}  // namespace

int main() {
  int registers, threads, fixed, dynamic;
  while (std::scanf("%d %d %d %d", &registers, &threads, &fixed, &dynamic) == 4) {
    for (const Architecture& on : kArchitectures) {
      std::printf("%d ", blocks(on, registers, threads, fixed, dynamic));
    }
    std::printf("\n");
  }
}
