// The emulated runtime keeps what CUDA promises, and refuses what CUDA refuses.
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <thread>
#include <vector>

#include "emulated_cuda.h"

namespace prophet {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kBytes = std::size_t{256} << 10;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Everything a test makes, given back in the right order whatever happens.
class EmulatedRuntime : public testing_cuda::EmulatedCuda {
 protected:
  void TearDown() override {
    if (!library_) return;
    machine({});
    for (void* stream : streams_) EXPECT_EQ(api().stream_synchronize(stream), 0);
    for (void* event : events_) EXPECT_EQ(api().event_destroy(event), 0);
    for (void* stream : streams_) EXPECT_EQ(api().stream_destroy(stream), 0);
    for (void* memory : device_) EXPECT_EQ(api().release(memory), 0);
    for (void* memory : pinned_) EXPECT_EQ(api().unpin(memory), 0);
    EmulatedCuda::TearDown();
  }

  void* stream(int priority = 0) {
    void* made = nullptr;
    EXPECT_EQ(api().stream_create(priority, &made), 0);
    return streams_.emplace_back(made);
  }
  void* event(bool timing = false) {
    void* made = nullptr;
    EXPECT_EQ(api().event_create(timing, &made), 0);
    return events_.emplace_back(made);
  }
  unsigned char* device(std::size_t bytes = kBytes) {
    void* made = nullptr;
    EXPECT_EQ(api().allocate(bytes, &made), 0);
    return static_cast<unsigned char*>(device_.emplace_back(made));
  }
  unsigned char* pinned(int value = 0, std::size_t bytes = kBytes) {
    void* made = nullptr;
    EXPECT_EQ(api().pin(bytes, &made), 0);
    std::memset(made, value, bytes);
    return static_cast<unsigned char*>(pinned_.emplace_back(made));
  }
  int up(void* to, const void* from, void* on, std::size_t bytes = kBytes) {
    return api().copy_async(to, from, bytes, CudaCopy::to_device, on);
  }
  int down(void* to, const void* from, void* on, std::size_t bytes = kBytes) {
    return api().copy_async(to, from, bytes, CudaCopy::to_host, on);
  }
  static bool all(const unsigned char* bytes, int value, std::size_t count = kBytes) {
    return std::all_of(bytes, bytes + count, [&](unsigned char each) { return each == value; });
  }

  std::vector<void*> streams_, events_, device_, pinned_;
};

TEST_F(EmulatedRuntime, BytesGoThereAndBack) {
  void* on = stream();
  unsigned char *there = device(), *from = pinned(7), *back = pinned(0);
  ASSERT_EQ(up(there, from, on), 0);
  ASSERT_EQ(down(back, there, on), 0);
  ASSERT_EQ(api().stream_synchronize(on), 0);
  EXPECT_TRUE(all(back, 7));
  ASSERT_EQ(api().fill_async(there, 9, kBytes, on), 0);
  unsigned char* copy = device();
  ASSERT_EQ(api().copy_async(copy, there, kBytes, CudaCopy::on_device, on), 0);
  ASSERT_EQ(down(back, copy, on), 0);
  ASSERT_EQ(api().stream_synchronize(on), 0);
  EXPECT_TRUE(all(back, 9));
}

TEST_F(EmulatedRuntime, FreshMemoryIsNotZero) {
  void* on = stream();
  unsigned char *there = device(), *back = pinned(0);
  ASSERT_EQ(down(back, there, on), 0);
  ASSERT_EQ(api().stream_synchronize(on), 0);
  EXPECT_TRUE(all(back, 0xCD));
}

#if !defined(__SANITIZE_THREAD__)  // there device memory has one mapping, always open
TEST_F(EmulatedRuntime, AHostThatFollowsADeviceAddressDies) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");  // other threads are about
  volatile unsigned char* there = device();
  EXPECT_DEATH(there[0] = 1, "");
}
#endif

TEST_F(EmulatedRuntime, PageableMemoryIsReadAtOncePinnedMemoryLate) {
  machine({{"LATENCY_US", "20000"}});
  void* on = stream();
  unsigned char *there = device(), *back = pinned(0), *late = pinned(1);
  std::vector<unsigned char> staged(1024, 1);
  ASSERT_EQ(up(there, staged.data(), on, staged.size()), 0);
  std::fill(staged.begin(), staged.end(), 2);
  ASSERT_EQ(down(back, there, on, staged.size()), 0);
  ASSERT_EQ(api().stream_synchronize(on), 0);
  EXPECT_TRUE(all(back, 1, staged.size()));
#if !defined(__SANITIZE_THREAD__)  // which would rightly call this a race
  ASSERT_EQ(up(there, late, on), 0);
  std::memset(late, 2, kBytes);  // too soon: the copy has not read it
  ASSERT_EQ(down(back, there, on), 0);
  ASSERT_EQ(api().stream_synchronize(on), 0);
  EXPECT_TRUE(all(back, 2));
#else
  (void)late;
#endif
}

TEST_F(EmulatedRuntime, AnEventOrdersTwoStreams) {
  machine({{"LATENCY_US", "3000"}, {"SEED", "5"}});
  void *first = stream(), *second = stream(3), *done = event();
  unsigned char *there = device(), *from = pinned(3), *back = pinned(0);
  EXPECT_EQ(api().event_query(done), 0) << "never recorded counts as done";
  ASSERT_EQ(up(there, from, first), 0);
  ASSERT_EQ(api().event_record(done, first), 0);
  ASSERT_EQ(api().stream_wait_event(second, done), 0);
  ASSERT_EQ(down(back, there, second), 0);
  EXPECT_EQ(api().event_query(done), kCudaNotReady);
  EXPECT_EQ(api().stream_query(second), kCudaNotReady);
  ASSERT_EQ(api().stream_synchronize(second), 0);
  EXPECT_EQ(api().event_query(done), 0);
  EXPECT_TRUE(all(back, 3));
}

TEST_F(EmulatedRuntime, TheUrgentStreamGoesFirstAndWaitsForOneCopyOnly) {
  machine({{"GBPS", "0.05"}});  // a copy takes about 5 ms
  void *low = stream(5), *high = stream(0);
  unsigned char *there = device(), *elsewhere = device(), *from = pinned(1);
  void *low_done = event(true), *high_done = event(true);
  for (int i = 0; i < 8; ++i) ASSERT_EQ(up(there, from, low), 0);
  ASSERT_EQ(api().event_record(low_done, low), 0);
  const auto begin = Clock::now();
  ASSERT_EQ(up(elsewhere, from, high), 0);
  ASSERT_EQ(api().event_record(high_done, high), 0);
  ASSERT_EQ(api().event_synchronize(high_done), 0);
  const double urgent = seconds_since(begin);
  EXPECT_EQ(api().event_query(low_done), kCudaNotReady);
  ASSERT_EQ(api().event_synchronize(low_done), 0);
  const double all_of_it = seconds_since(begin);
  EXPECT_LT(urgent, all_of_it / 2);
  float between = 0;
  ASSERT_EQ(api().event_elapsed(high_done, low_done, &between), 0);
  EXPECT_GT(between, 0);
}

TEST_F(EmulatedRuntime, BothDirectionsAtOnce) {
  machine({{"GBPS", "0.004"}});  // 65 ms a copy
  void *out = stream(), *in = stream();
  unsigned char *there = device(), *other = device(), *from = pinned(1), *back = pinned(0);
  const auto begin = Clock::now();
  ASSERT_EQ(up(there, from, out), 0);
  ASSERT_EQ(down(back, other, in), 0);
  ASSERT_EQ(api().device_synchronize(), 0);
  const double both = seconds_since(begin);
  EXPECT_GE(both, 0.9 * kBytes / 0.004e9);
  EXPECT_LT(both, 1.7 * kBytes / 0.004e9);
}

TEST_F(EmulatedRuntime, MemoryEnds) {
  machine({{"MEMORY_MB", "8"}, {"PINNED_MB", "1"}});
  void* none = nullptr;
  EXPECT_EQ(api().allocate(std::size_t{9} << 20, &none), kCudaOutOfMemory);
  EXPECT_EQ(none, nullptr);
  device(std::size_t{6} << 20);
  EXPECT_EQ(api().allocate(std::size_t{3} << 20, &none), kCudaOutOfMemory);
  std::size_t free = 0, total = 0;
  ASSERT_EQ(api().memory_info(&free, &total), 0);
  EXPECT_EQ(total, std::size_t{8} << 20);
  EXPECT_EQ(free, std::size_t{2} << 20);
  pinned(0, std::size_t{1} << 20);
  EXPECT_EQ(api().pin(4096, &none), kCudaOutOfMemory);
  EXPECT_EQ(none, nullptr);
}

TEST_F(EmulatedRuntime, RegisteredMemory) {
  std::vector<unsigned char> bytes(kBytes, 4);
  CudaMemory kind = CudaMemory::managed;
  int owner = 7;
  ASSERT_EQ(api().memory_kind(bytes.data(), &kind, &owner), 0);
  EXPECT_EQ(kind, CudaMemory::pageable);
  EXPECT_EQ(owner, -1);
  ASSERT_EQ(api().register_host(bytes.data(), bytes.size()), 0);
  EXPECT_EQ(api().register_host(bytes.data() + 4096, 4096), kCudaAlreadyRegistered);
  ASSERT_EQ(api().memory_kind(bytes.data() + 5, &kind, &owner), 0);
  EXPECT_EQ(kind, CudaMemory::pinned);
  void* view = nullptr;
  ASSERT_EQ(api().device_address(bytes.data(), &view), 0);
  EXPECT_NE(view, nullptr);
  EXPECT_EQ(control_->reachable(bytes.data(), bytes.size()), 1);
  EXPECT_EQ(control_->reachable(bytes.data(), bytes.size() + 1), 0);
  EXPECT_EQ(api().unpin(bytes.data()), kCudaInvalidValue) << "not allocated by pin";
  ASSERT_EQ(api().unregister_host(bytes.data()), 0);
  EXPECT_EQ(control_->reachable(bytes.data(), 1), 0);
  EXPECT_NE(api().unregister_host(bytes.data()), 0);
  EXPECT_EQ(api().device_address(bytes.data(), &view), kCudaInvalidValue);
}

TEST_F(EmulatedRuntime, WrongAddressesAndHandlesAreErrors) {
  void* on = stream();
  unsigned char *there = device(), *from = pinned(1);
  EXPECT_EQ(up(there + 1, from, on), kCudaInvalidValue) << "one byte past the end";
  EXPECT_EQ(up(from, from, on), kCudaInvalidValue) << "the wrong kind";
  EXPECT_EQ(down(there, from, on), kCudaInvalidValue) << "the wrong way";
  EXPECT_NE(up(there, from, &on), 0) << "no stream";
  EXPECT_NE(api().stream_destroy(nullptr), 0);
  EXPECT_NE(api().event_record(nullptr, on), 0);
  EXPECT_NE(api().release(there + 1), 0);
  EXPECT_NE(api().use_device(1), 0);
  EXPECT_EQ(up(there, from, nullptr), 0) << "the default stream";
  EXPECT_EQ(api().stream_synchronize(nullptr), 0);
}

TEST_F(EmulatedRuntime, EventsAndStreamsOfTwoDevicesDoNotMix) {
  machine({{"DEVICES", "2"}});
  ASSERT_EQ(api().use_device(1), 0);
  void *there = stream(), *mark = event();
  int owner = -1;
  ASSERT_EQ(api().stream_device(there, &owner), 0);
  EXPECT_EQ(owner, 1);
  ASSERT_EQ(api().use_device(0), 0);
  void* here = stream();
  EXPECT_NE(api().event_record(mark, here), 0);
  EXPECT_EQ(api().event_record(mark, there), 0);
  EXPECT_EQ(api().stream_wait_event(here, mark), 0);
}

TEST_F(EmulatedRuntime, CallsThatWaitAreCounted) {
  void *on = stream(), *mark = event();
  unsigned char *there = device(), *from = pinned(1);
  std::vector<unsigned char> pageable(512, 1);
  const auto counted = [&](auto call) {
    const std::uint64_t before = api().synchronising_calls();
    EXPECT_EQ(call(), 0);
    return api().synchronising_calls() - before;
  };
  EXPECT_EQ(counted([&] { return up(there, from, on); }), 0u);
  EXPECT_EQ(counted([&] { return api().event_record(mark, on); }), 0u);
  EXPECT_EQ(counted([&] { return api().stream_wait_event(on, mark); }), 0u);
  EXPECT_EQ(counted([&] { return up(there, pageable.data(), on, pageable.size()); }), 1u);
  EXPECT_EQ(counted([&] { return api().stream_synchronize(on); }), 1u);
  EXPECT_EQ(counted([&] { return api().event_query(mark); }), 0u);
  EXPECT_EQ(counted([&] { return api().event_synchronize(mark); }), 1u);
  EXPECT_EQ(counted([&] { return api().device_synchronize(); }), 1u);
}

TEST_F(EmulatedRuntime, ADestroyedStreamStillDoesItsWork) {
  machine({{"LATENCY_US", "2000"}});
  void* brief = nullptr;
  ASSERT_EQ(api().stream_create(0, &brief), 0);
  unsigned char *there = device(), *from = pinned(6), *back = pinned(0);
  ASSERT_EQ(up(there, from, brief), 0);
  ASSERT_EQ(down(back, there, brief), 0);
  ASSERT_EQ(api().stream_destroy(brief), 0);
  EXPECT_NE(api().stream_query(brief), 0);
  ASSERT_EQ(api().device_synchronize(), 0);
  EXPECT_TRUE(all(back, 6));
}

TEST_F(EmulatedRuntime, AGraphIsDoneAgainNotWhenRecorded) {
  void* on = stream();
  unsigned char *there = device(), *from = pinned(1), *back = pinned(0);
  ASSERT_EQ(api().begin_capture(on), 0);
  ASSERT_EQ(up(there, from, on), 0);
  ASSERT_EQ(down(back, there, on), 0);
  void* graph = nullptr;
  ASSERT_EQ(api().end_capture(on, &graph), 0);
  ASSERT_EQ(api().stream_synchronize(on), 0);
  EXPECT_TRUE(all(back, 0)) << "recorded, not done";
  for (int value = 1; value <= 3; ++value) {
    std::memset(from, value, kBytes);
    ASSERT_EQ(api().graph_launch(graph, on), 0);
    ASSERT_EQ(api().stream_synchronize(on), 0);
    EXPECT_TRUE(all(back, value));
  }
  EXPECT_EQ(api().graph_destroy(graph), 0);
  EXPECT_NE(api().graph_destroy(graph), 0);
}

TEST_F(EmulatedRuntime, ACaptureIsSpoiltByWhatWaitsOrAllocates) {
  void *on = stream(), *mark = event();
  ASSERT_EQ(api().event_record(mark, on), 0);
  const auto spoils = [&](auto call) {
    EXPECT_EQ(api().begin_capture(on), 0);
    EXPECT_NE(call(), 0);
    void* graph = nullptr;
    EXPECT_NE(api().end_capture(on, &graph), 0);
    EXPECT_EQ(graph, nullptr);
    EXPECT_EQ(api().stream_synchronize(on), 0) << "usable again";
  };
  void* memory = nullptr;
  spoils([&] { return api().stream_synchronize(on); });
  spoils([&] { return api().allocate(4096, &memory); });
  spoils([&] { return api().stream_wait_event(on, mark); });
  spoils([&] { return api().event_query(mark); });
  std::vector<unsigned char> pageable(16);
  unsigned char* there = device();
  spoils([&] { return up(there, pageable.data(), on, pageable.size()); });
}

TEST_F(EmulatedRuntime, ALostDeviceFailsEveryCallAndHangsNone) {
  machine({{"LATENCY_US", "2000"}});
  void* on = stream();
  unsigned char *there = device(), *from = pinned(1);
  for (int i = 0; i < 4; ++i) ASSERT_EQ(up(there, from, on), 0);
  control_->lose_device(kCudaLaunchFailure);
  EXPECT_EQ(up(there, from, on), kCudaLaunchFailure);
  EXPECT_EQ(api().stream_synchronize(on), kCudaLaunchFailure);
  EXPECT_EQ(api().device_synchronize(), kCudaLaunchFailure);
  void* none = nullptr;
  EXPECT_EQ(api().allocate(16, &none), kCudaLaunchFailure);
  EXPECT_EQ(none, nullptr);
}

TEST_F(EmulatedRuntime, ExactlyTheCallNamedFails) {
  machine({{"FAIL", "cudaMalloc:2=2,cudaStreamCreateWithPriority:1=999"}});
  void *first = nullptr, *second = nullptr;
  ASSERT_EQ(api().allocate(4096, &first), 0);
  EXPECT_EQ(api().allocate(4096, &second), kCudaOutOfMemory);
  ASSERT_EQ(api().allocate(4096, &second), 0);
  EXPECT_EQ(control_->calls("cudaMalloc"), 3u);
  EXPECT_EQ(api().release(first), 0);
  EXPECT_EQ(api().release(second), 0);
  void* none = nullptr;
  EXPECT_EQ(api().stream_create(0, &none), 999);
  EXPECT_EQ(api().device_synchronize(), 999) << "an unknown error stays";
}

TEST_F(EmulatedRuntime, ManyThreadsAtOnce) {
  machine({{"SEED", "11"}});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    unsigned char *there = device(), *from = pinned(t + 1), *back = pinned(0);
    void *out = stream(t), *in = stream(), *mark = event();
    threads.emplace_back([=, this] {
      for (int round = 0; round < 5; ++round) {
        EXPECT_EQ(up(there, from, out), 0);
        EXPECT_EQ(api().event_record(mark, out), 0);
        EXPECT_EQ(api().stream_wait_event(in, mark), 0);
        EXPECT_EQ(down(back, there, in), 0);
        EXPECT_EQ(api().stream_synchronize(in), 0);
        EXPECT_TRUE(all(back, t + 1));
      }
    });
  }
  for (std::thread& each : threads) each.join();
}

}  // namespace
}  // namespace prophet
