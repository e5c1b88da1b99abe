// The backend on the emulated library under ThreadSanitizer, which knows no order but CUDA's there
// (cuda_emulation/ordering.h): no report as it is, and one for every mistake, whatever the bytes
// came out as. Built with the sanitizer only; it needs its reports.
#include <gtest/gtest.h>

#if defined(__SANITIZE_THREAD__) && defined(PROPHET_EMULATED_LIBRARY)

#include <cstdlib>

#include "device/cuda/cuda_handles.h"
#include "device/cuda_mutants.h"
#include "device/cuda_rig.h"
#include "emulated_cuda.h"

namespace prophet::testing_device {
namespace {

constexpr std::uint64_t kExperts = 6, kSlots = 2;
constexpr int kReported = 66;  // the sanitizer's exit status

class CudaRace : public testing_cuda::EmulatedCuda {
 protected:
  // Experts through fewer slots, each read on a compute stream. Copies take longer than the host
  // needs to ask for all of them, so that it cannot know by itself that one is over.
  void bring_all(CudaApi (*mutant)()) {
    machine({{"LATENCY_US", "15000"}});
    original = api();
    const CudaApi table = mutant == nullptr ? original : mutant();
    TempFiles files;
    const std::string path = files.make("weights", 0, kExperts * kBlock);
    CudaOptions options = small_pool();
    options.api = &table;
    auto backend = make_cuda_backend(options);
    backend->open({path});
    const auto memory = backend->fast_memory(kSlots * kBlock);
    ASSERT_EQ(original.stream_create(1, &now.compute), 0);
    ASSERT_EQ(original.stream_create(1, &now.other), 0);
    void* results = nullptr;
    ASSERT_EQ(original.pin(kExperts * kBlock, &results), 0);
    for (std::uint64_t i = 0; i < kExperts; ++i) {
      backend->wait(backend->stage({0, i * kBlock, kBlock, 0}));
    }
    const auto compute = reinterpret_cast<Stream>(now.compute);
    std::vector<Ticket> last(kSlots, 0);
    for (std::uint64_t i = 0; i < kExperts; ++i) {
      std::byte* slot = memory.data() + i % kSlots * kBlock;
      backend->after(Lane::demand, last[i % kSlots]);
      const Ticket ticket = backend->copy(Lane::demand, slot, {0, i * kBlock, kBlock, 0});
      backend->after(compute, ticket);
      original.copy_async(static_cast<std::byte*>(results) + i * kBlock, slot, kBlock,
                          CudaCopy::to_host, now.compute);
      last[i % kSlots] = backend->mark(compute);
    }
    original.stream_synchronize(now.compute);
    original.stream_synchronize(now.other);
    if (mutant == nullptr) {
      for (std::uint64_t at = 0; at < kExperts * kBlock; at += 97) {
        ASSERT_EQ(static_cast<std::byte*>(results)[at], ManualBackend::byte_at(0, at));
      }
    }
    backend.reset();
    original.stream_destroy(now.compute);
    original.stream_destroy(now.other);
    original.unpin(results);
  }
};

TEST_F(CudaRace, NoneAsItIs) { bring_all(nullptr); }

TEST_F(CudaRace, OneForEveryMistake) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // a program of its own, with its own verdict
  for (const Mutant& mutant : kMutants) {
    SCOPED_TRACE(mutant.name);
    EXPECT_EXIT(
        {
          bring_all(mutant.make);
          std::exit(0);
        },
        testing::ExitedWithCode(kReported), "ThreadSanitizer: data race");
  }
}

}  // namespace
}  // namespace prophet::testing_device

#endif
