// What happens when the driver says no: every call of a scenario in turn, for once or for ever.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>

#include "device/cuda_rig.h"

namespace prophet::testing_device {
namespace {

using testing::HasSubstr;

constexpr std::uint64_t kExperts = 6, kSlots = 2;

struct Files {
  Files() : path(files.make("weights", 0, kExperts * kBlock)) {}
  TempFiles files;
  std::string path;
};

CudaOptions on(const CudaModel& model) {
  CudaOptions options = small_pool();
  options.api = model.api();
  return options;
}

// Brings all experts through two slots, computing on each. Counts what was read right; throws what
// the backend throws. Failed tickets are counted and gone past.
struct Outcome {
  int right = 0, failed = 0;
};
Outcome scenario(CudaModel& model, void* stream, const std::string& path) {
  Outcome outcome;
  std::atomic<int> right = 0;
  const auto backend = make_cuda_backend(on(model));
  backend->open({path});
  const auto memory = backend->fast_memory(kSlots * kBlock);
  const auto compute = reinterpret_cast<Stream>(stream);
  std::vector<Ticket> last(kSlots, 0);
  for (std::uint64_t i = 0; i < kExperts; ++i) {
    const Lane lane = i % 3 == 2 ? Lane::prefetch : Lane::demand;
    std::byte* slot = memory.data() + i % kSlots * kBlock;
    const Extent expert{0, i * kBlock, kBlock, 0};
    if (i % 2 == 1) backend->stage(expert);
    backend->after(lane, last[i % kSlots]);
    const Ticket ticket = backend->copy(lane, slot, expert);
    try {
      if (i % 2 == 0) backend->wait(ticket);
      backend->after(compute, ticket);
    } catch (const DeviceError& error) {
      EXPECT_THAT(error.what(), HasSubstr("failed"));
      ++outcome.failed;
      continue;
    }
    model.launch(stream, {{slot, kBlock}}, [slot, i, &right] {
      bool same = true;
      for (std::uint64_t at = 0; at < kBlock; at += 499) {
        same = same && slot[at] == ManualBackend::byte_at(0, i * kBlock + at);
      }
      right += same;
    });
    last[i % kSlots] = backend->mark(compute);
  }
  for (Ticket each : last) {
    try {
      backend->wait(each);
    } catch (const DeviceError&) {
      ++outcome.failed;
    }
  }
  outcome.right = right;
  return outcome;
}

class CudaFault : public testing::TestWithParam<bool> {};

TEST_P(CudaFault, OfAnyCallIsASentenceAndLeavesNothingBehind) {
  const bool sticky = GetParam();
  const Files files;
  std::map<std::string, int> calls;
  {
    CudaModel model;
    void* stream = model.make_stream();
    EXPECT_EQ(scenario(model, stream, files.path).right, int(kExperts));
    calls = model.all_calls();
    model.api()->stream_destroy(stream);
  }
  ASSERT_GE(calls.size(), 10u);
  std::set<std::string> surfaced;
  for (const auto& [function, count] : calls) {
    for (int nth : std::set<int>{1, 2, count / 2 + 1, count}) {
      SCOPED_TRACE(function + " number " + std::to_string(nth));
      CudaModel model(std::uint64_t(nth) + 1);
      void* stream = model.make_stream();
      const std::size_t alive = model.alive();
      model.fail(function, nth, sticky ? kCudaLaunchFailure : kCudaOutOfMemory, sticky);
      bool failed = false;
      try {
        const Outcome outcome = scenario(model, stream, files.path);
        EXPECT_EQ(outcome.right + outcome.failed >= int(kExperts) || sticky, true);
        failed = outcome.failed > 0;
      } catch (const DeviceError& error) {
        EXPECT_THAT(error.what(), HasSubstr("failed"));
        failed = true;
      }
      if (failed) surfaced.insert(function);
      model.heal();
      model.api()->stream_synchronize(stream);
      EXPECT_EQ(model.alive(), alive);
      EXPECT_EQ(scenario(model, stream, files.path).right, int(kExperts));  // the next use works
      EXPECT_EQ(model.races(), std::vector<std::string>{});
      model.api()->stream_destroy(stream);
    }
  }
  // The others are got over: page-locking, looks that are repeated, events that streams replace,
  // giving back.
  for (const char* function :
       {"device_info", "use_device", "allocate", "stream_create", "event_create", "copy_async"}) {
    EXPECT_TRUE(surfaced.contains(function)) << function;
  }
}

INSTANTIATE_TEST_SUITE_P(Calls, CudaFault, testing::Values(false, true),
                         [](const auto& info) { return info.param ? "Sticky" : "Once"; });

struct Bench {
  explicit Bench(CudaOptions options = small_pool()) {
    options.api = model.api();
    backend = make_cuda_backend(options);
    backend->open({files.path});
    memory = backend->fast_memory(kExperts * kBlock);
  }
  Ticket copy(std::uint64_t number, Lane lane = Lane::demand) {
    return backend->copy(lane, memory.data() + number * kBlock, {0, number * kBlock, kBlock, 0});
  }
  std::string error_of(const std::function<void()>& call) {
    try {
      call();
    } catch (const DeviceError& error) {
      return error.what();
    }
    return {};
  }
  Files files;
  CudaModel model;
  std::unique_ptr<Backend> backend;
  std::span<std::byte> memory;
};

TEST(CudaFault, ALostDeviceFailsWhatIsUnderWayAndAllThatFollows) {
  Bench bench;
  void* stream = bench.model.make_stream();
  const auto compute = reinterpret_cast<Stream>(stream);
  bench.backend->wait(bench.copy(0));
  bench.model.hold();
  bench.model.launch(stream, {}, [] {});
  const Ticket mark = bench.backend->mark(compute);
  std::vector<Ticket> tickets;
  for (std::uint64_t i = 0; i < kExperts; ++i) {
    tickets.push_back(bench.copy(i, i % 2 == 0 ? Lane::demand : Lane::prefetch));
  }
  bench.model.lose_device();
  bench.model.release();
  for (Ticket each : tickets) {
    EXPECT_THAT(bench.error_of([&] { bench.backend->wait(each); }), HasSubstr("failed"));
  }
  EXPECT_NE(bench.error_of([&] { bench.backend->wait(mark); }), "");
  EXPECT_THAT(bench.backend->failure(), HasSubstr("start it again"));
  EXPECT_NE(bench.error_of([&] { bench.backend->wait(bench.copy(1)); }), "");
  EXPECT_NE(bench.error_of([&] { bench.backend->mark(compute); }), "");
  EXPECT_NE(bench.error_of([&] { bench.backend->after(compute, tickets[0]); }), "");
  bench.backend->after(Lane::demand, tickets[1]);
  EXPECT_NE(bench.error_of([&] {
    bench.backend->wait(bench.backend->stage({0, 0, kBlock, 0}));
  }),
            "");
  bench.backend.reset();  // ends, whatever the device says
  bench.model.heal();
  bench.model.api()->stream_destroy(stream);
  EXPECT_EQ(bench.model.alive(), 0u);
}

TEST(CudaFault, OneCopyThatIsRefusedFailsAlone) {
  Bench bench;
  bench.model.fail("copy_async", 1, kCudaOutOfMemory);
  const Ticket refused = bench.copy(0);
  EXPECT_THAT(bench.error_of([&] { bench.backend->wait(refused); }),
              HasSubstr("copying 65536 bytes to the device failed: out of memory"));
  EXPECT_THROW(bench.backend->poll(refused), DeviceError);
  EXPECT_EQ(bench.backend->failure(), "");
  bench.backend->wait(bench.copy(0));
  EXPECT_EQ(bench.memory[5], ManualBackend::byte_at(0, 5));
}

TEST(CudaFault, MemoryThatCannotBeHadSaysHowMuchThereIs) {
  CudaModel model;
  model.limit_device(1 << 20);
  const auto backend = make_cuda_backend(on(model));
  try {
    backend->fast_memory(std::size_t{1} << 30);
    FAIL();
  } catch (const DeviceError& error) {
    EXPECT_THAT(error.what(), HasSubstr("allocating 1024 MiB of device memory for experts (1 MiB "
                                        "of 1 MiB are free) failed: out of memory"));
  }
  EXPECT_EQ(backend->fast_memory(1 << 19).size(), std::size_t{1} << 19);  // fewer slots will do
}

TEST(CudaFault, ThePoolIsAsLargeAsWhatCanBePageLocked) {
  Files files;
  CudaModel model;
  model.limit_pinned(18 * kBlock);
  CudaOptions options = on(model);
  options.pool_bytes = 40 * kBlock;
  const auto backend = make_cuda_backend(options);
  EXPECT_EQ(backend->staging().capacity, 18 * kBlock);
  EXPECT_THAT(backend->description(), HasSubstr("1 MiB (2 MiB were asked for: "));
  EXPECT_THAT(backend->description(), HasSubstr("page-locking 65536 bytes after 1179648"));
  backend->open({files.path});
  const auto memory = backend->fast_memory(kExperts * kBlock);
  backend->wait(backend->copy(Lane::demand, memory.data(), {0, 0, kExperts * kBlock, 0}));
  for (std::uint64_t at = 0; at < memory.size(); at += 101) {
    ASSERT_EQ(memory[at], ManualBackend::byte_at(0, at));
  }
}

TEST(CudaFault, WhereTooLittleCanBePageLockedASentenceSaysSo) {
  CudaModel model;
  model.limit_pinned(15 * kBlock);
  try {
    make_cuda_backend(on(model));
    FAIL();
  } catch (const DeviceError& error) {
    EXPECT_THAT(error.what(), HasSubstr("at least 1048576 bytes"));
    EXPECT_THAT(error.what(), HasSubstr("ulimit -l unlimited"));
  }
  EXPECT_EQ(model.alive(), 0u);
}

TEST(CudaFault, AStreamOfNobodyIsASentence) {
  Bench bench;
  int nothing = 0;
  EXPECT_THAT(bench.error_of([&] { bench.backend->mark(reinterpret_cast<Stream>(&nothing)); }),
              HasSubstr("must belong to the device of the experts"));
  EXPECT_EQ(bench.backend->failure(), "");
}

}  // namespace
}  // namespace prophet::testing_device
