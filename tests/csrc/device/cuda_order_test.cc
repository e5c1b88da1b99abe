// The order of copies and kernels: right as it is, and found wrong in every run once one thing is
// taken out of it.
//
#include <gtest/gtest.h>

#include <atomic>

#include "device/cuda_mutants.h"
#include "device/cuda_rig.h"

namespace prophet::testing_device {
namespace {

constexpr int kRuns = 20;
constexpr std::uint64_t kExperts = 6, kSlots = 2;

struct Outcome {
  std::vector<std::string> races;
  int wrong = 0;  // experts that a kernel read other bytes of
};

// Experts through fewer slots, each read by a kernel: after its copy, and before the slot's next.
// Nothing moves on the device until all has been asked for, as on one that is busy.
Outcome run(CudaApi (*mutant)(), std::uint64_t seed, Lane lane = Lane::demand) {
  original = CudaModel::copy_of_table();
  const CudaApi table = mutant == nullptr ? original : mutant();
  CudaOptions options = small_pool();
  options.api = &table;
  CudaRig rig(options, seed);
  CudaModel& model = rig.model();
  Backend& backend = rig.backend();
  backend.open(rig.paths());
  const auto memory = backend.fast_memory(kSlots * kBlock);
  now.compute = model.make_stream();
  now.other = model.make_stream();
  const auto compute = reinterpret_cast<Stream>(now.compute);
  for (std::uint64_t i = 0; i < kExperts; ++i) {
    backend.wait(backend.stage({0, i * kBlock, kBlock, 0}));
  }
  const bool hold = lane == Lane::demand;  // of prefetches only one is on the link
  if (hold) model.hold();
  std::atomic<int> wrong = 0;
  std::vector<Ticket> last(kSlots, 0);
  for (std::uint64_t i = 0; i < kExperts; ++i) {
    const std::byte* slot = memory.data() + i % kSlots * kBlock;
    backend.after(lane, last[i % kSlots]);
    const Ticket ticket =
        backend.copy(lane, const_cast<std::byte*>(slot), {0, i * kBlock, kBlock, 0});
    backend.after(compute, ticket);
    model.launch(now.compute, {{slot, kBlock}}, [slot, i, &wrong] {
      for (std::uint64_t at = 0; at < kBlock; at += 997) {
        if (slot[at] != ManualBackend::byte_at(0, i * kBlock + at)) {
          ++wrong;
          return;
        }
      }
    });
    last[i % kSlots] = backend.mark(compute);
  }
  model.release();
  model.api()->stream_synchronize(now.compute);
  model.api()->stream_synchronize(now.other);
  rig.destroy();
  model.api()->stream_destroy(now.compute);
  model.api()->stream_destroy(now.other);
  return {model.races(), wrong};
}

TEST(CudaOrder, BothHazardsAreOrderedByEvents) {
  for (int seed = 1; seed <= kRuns; ++seed) {
    const Outcome outcome = run(nullptr, std::uint64_t(seed));
    EXPECT_EQ(outcome.races, std::vector<std::string>{}) << "seed " << seed;
    EXPECT_EQ(outcome.wrong, 0) << "seed " << seed;
  }
}

TEST(CudaOrder, PrefetchesAreOrderedToo) {
  for (int seed = 1; seed <= kRuns; ++seed) {
    const Outcome outcome = run(nullptr, std::uint64_t(seed), Lane::prefetch);
    EXPECT_EQ(outcome.races, std::vector<std::string>{}) << "seed " << seed;
    EXPECT_EQ(outcome.wrong, 0) << "seed " << seed;
  }
}

#ifndef __SANITIZE_THREAD__  // the mutants race in earnest; cuda_race_test.cc has them there

class CudaMutant : public testing::TestWithParam<Mutant> {};

TEST_P(CudaMutant, IsCaughtInEveryRun) {
  int caught = 0;
  for (int seed = 1; seed <= kRuns; ++seed) {
    caught += !run(GetParam().make, std::uint64_t(seed)).races.empty();
  }
  EXPECT_EQ(caught, kRuns);
}

INSTANTIATE_TEST_SUITE_P(CudaOrder, CudaMutant, testing::ValuesIn(kMutants),
                         [](const auto& info) { return std::string(info.param.name); });

// A block of the pool that is believed to be copied is filled with something else.
TEST(CudaOrder, ABlockRefilledTooEarlyIsCaughtInEveryRun) {
  int caught = 0;
  for (int seed = 1; seed <= kRuns; ++seed) {
    original = CudaModel::copy_of_table();
    CudaApi table = original;
    table.event_synchronize = [](void*) { return 0; };
    CudaOptions options = small_pool();
    options.api = &table;
    CudaRig rig(options, std::uint64_t(seed));
    rig.backend().open(rig.paths());
    const auto memory = rig.backend().fast_memory(2 * kLeastBlocks * kBlock);
    rig.model().hold();
    for (std::uint64_t i = 0; i < 2 * kLeastBlocks; ++i) {
      rig.backend().wait(
          rig.backend().copy(Lane::demand, memory.data() + i * kBlock, {0, i * kBlock, kBlock, 0}));
    }
    rig.model().release();
    while (rig.model().copies_queued() > 0) std::this_thread::yield();
    bool wrong = false;
    for (std::uint64_t at = 0; at < memory.size() && !wrong; at += 997) {
      wrong = memory[at] != ManualBackend::byte_at(0, at);
    }
    caught += wrong;
  }
  EXPECT_EQ(caught, kRuns);
}

#endif

}  // namespace
}  // namespace prophet::testing_device
