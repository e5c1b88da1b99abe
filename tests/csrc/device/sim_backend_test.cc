#include "device/sim/sim_backend.h"

#include <gmock/gmock.h>

#include <cmath>

#include "device/backend_conformance.h"

namespace prophet {
namespace {

using testing_device::BackendConformance;
using testing_device::BackendRig;
using testing_device::RigMaker;

constexpr std::uint64_t kFileBytes = (std::uint64_t{2} << 20) + 123;

class SimRig final : public BackendRig {
 public:
  SimRig(std::uint64_t alignment, Nanos latency) : unit_(alignment) {
    SimOptions options;
    options.alignment = alignment;
    options.latency = latency;
    options.overhead = 50;
    options.file_bytes = kFileBytes;
    options.content = [](std::int32_t file, std::uint64_t offset, std::span<std::byte> out) {
      for (std::size_t i = 0; i < out.size(); ++i)
        out[i] = ManualBackend::byte_at(file, offset + i);
    };
    backend_ = std::make_unique<SimBackend>(options);
  }
  Backend& backend() override { return *backend_; }
  std::vector<std::string> paths() const override { return {"a", "b", "c"}; }
  Ticket copy_that_fails(Lane lane, std::byte* to, const Extent& from) override {
    return backend_->copy(lane, to, {from.file, (kFileBytes / unit_ + 1) * unit_, from.bytes, 0});
  }
  void destroy() override { backend_.reset(); }

 private:
  std::uint64_t unit_;
  std::unique_ptr<SimBackend> backend_;
};

INSTANTIATE_TEST_SUITE_P(
    Sim, BackendConformance,
    testing::Values(RigMaker{"byte", [] { return std::make_unique<SimRig>(1, 0); }},
                    RigMaker{"page", [] { return std::make_unique<SimRig>(4096, 7000); }}),
    RigMaker::name_of);

// A link of one byte per nanosecond.
class SimBackendTest : public testing::Test {
 protected:
  void start(Nanos latency = 0, Nanos overhead = 0) {
    SimOptions options;
    options.bytes_per_second = 1e9;
    options.latency = latency;
    options.overhead = overhead;
    backend_ = std::make_unique<SimBackend>(options);
    backend_->open({"virtual"});
    // More than most machines have, and little enough for the address space under sanitizers.
    memory_ = backend_->fast_memory(std::size_t{1} << 37);
  }
  Ticket demand(std::uint64_t bytes) { return copy(Lane::demand, bytes); }
  Ticket prefetch(std::uint64_t bytes) { return copy(Lane::prefetch, bytes); }
  Ticket copy(Lane lane, std::uint64_t bytes) {
    return backend_->copy(lane, memory_.data(), {0, 0, bytes, 0});
  }
  Nanos lands(Ticket ticket) {
    backend_->wait(ticket);
    return backend_->now();
  }

  std::unique_ptr<SimBackend> backend_;
  std::span<std::byte> memory_;
};

TEST_F(SimBackendTest, ChunksOccupyTheLinkOneByOneAndLandLatencyLater) {
  start(1000, 10);
  const Ticket a = demand(100), b = demand(200);
  EXPECT_EQ(backend_->next_landing(), 1110);
  EXPECT_EQ(lands(a), 1110);
  EXPECT_EQ(lands(b), 10 + 100 + 10 + 200 + 1000);
  EXPECT_EQ(backend_->next_landing(), SimBackend::kNever);
}

TEST_F(SimBackendTest, TheLinkWorksDuringCompute) {
  start();
  const Ticket a = demand(100), b = demand(100);
  backend_->advance(150);
  EXPECT_EQ(backend_->now(), 150);
  EXPECT_TRUE(backend_->poll(a));
  EXPECT_FALSE(backend_->poll(b));
  EXPECT_EQ(lands(b), 200);
  EXPECT_EQ(lands(a), 200) << "waiting for what has landed costs nothing";
}

TEST_F(SimBackendTest, ADemandWaitsForTheChunkUnderWayOnly) {
  start();
  const Ticket first = prefetch(100), second = prefetch(100);
  backend_->advance(1);
  const Ticket urgent = demand(50);
  EXPECT_EQ(lands(urgent), 150);
  EXPECT_TRUE(backend_->poll(first));
  EXPECT_EQ(lands(second), 250);
}

TEST_F(SimBackendTest, ADemandAtTheMomentTheLinkBecomesFreeGoesFirst) {
  start();
  const Ticket first = prefetch(100);
  prefetch(100);
  EXPECT_EQ(lands(first), 100);
  EXPECT_EQ(lands(demand(50)), 150);
  // Also at the very moment of the prefetch itself.
  start();
  const Ticket later = prefetch(100);
  EXPECT_EQ(lands(demand(50)), 50);
  EXPECT_EQ(lands(later), 150);
}

TEST_F(SimBackendTest, ALaneThatGoesAfterATicketStartsWhenItLands) {
  start(1000);
  const Ticket first = demand(100);
  backend_->after(Lane::prefetch, first);
  const Ticket second = prefetch(10);
  const Ticket third = demand(10);  // its own lane is free to go on
  EXPECT_EQ(lands(third), 100 + 10 + 1000);
  EXPECT_EQ(lands(second), 1100 + 10 + 1000);
}

TEST_F(SimBackendTest, BusyCountsFromStartToLanding) {
  start(5);
  backend_->advance(1000);
  const Ticket a = demand(100);
  const Ticket b = prefetch(50);
  backend_->wait(b);
  backend_->advance(1000);
  EXPECT_TRUE(backend_->poll(a));
  EXPECT_EQ(backend_->stats(Lane::demand).busy, 105);
  EXPECT_EQ(backend_->stats(Lane::prefetch).busy, 55);
  EXPECT_EQ(backend_->busy(), 155);
  EXPECT_EQ(backend_->stats(Lane::demand).bytes, 100u);
  EXPECT_EQ(backend_->now(), 2155);
}

TEST_F(SimBackendTest, ARandomScheduleEqualsAReplayInSmallSteps) {
  // The same link, simulated nanosecond by nanosecond from the sentences of the header.
  std::mt19937_64 random(5);
  for (int round = 0; round < 200; ++round) {
    const Nanos latency = Nanos(random() % 30), overhead = Nanos(random() % 5);
    start(latency, overhead);
    struct Chunk {
      Lane lane;
      Nanos asked, bytes, landed = -1;
      Ticket ticket = 0;
    };
    std::vector<Chunk> chunks;
    Nanos at = 0;
    for (int i = 0; i < 20; ++i) {
      if (random() % 3 == 0) at += Nanos(random() % 60);
      const Lane lane = random() % 2 ? Lane::demand : Lane::prefetch;
      chunks.push_back({lane, at, 1 + Nanos(random() % 40)});
    }
    for (Chunk& chunk : chunks) {
      backend_->advance(chunk.asked - backend_->now());
      chunk.ticket = copy(chunk.lane, std::uint64_t(chunk.bytes));
    }
    Nanos free = 0;
    for (Nanos t = 0;; ++t) {
      Chunk* next = nullptr;
      for (Lane lane : {Lane::prefetch, Lane::demand}) {
        const auto oldest = std::find_if(chunks.begin(), chunks.end(), [&](const Chunk& c) {
          return c.lane == lane && c.landed < 0 && c.asked <= t;
        });
        if (oldest != chunks.end()) next = &*oldest;
      }
      if (next != nullptr && t >= free) {
        free = t + overhead + next->bytes;
        next->landed = free + latency;
      }
      if (std::all_of(chunks.begin(), chunks.end(), [](const Chunk& c) { return c.landed >= 0; })) {
        break;
      }
    }
    std::sort(chunks.begin(), chunks.end(),
              [](const Chunk& a, const Chunk& b) { return a.landed < b.landed; });
    for (const Chunk& chunk : chunks) {
      if (chunk.landed > backend_->now()) {
        EXPECT_FALSE(backend_->poll(chunk.ticket));
        ASSERT_EQ(lands(chunk.ticket), chunk.landed) << "round " << round;
      }
      ASSERT_TRUE(backend_->poll(chunk.ticket)) << "round " << round;
    }
  }
}

TEST(SimBackend, RefusesMachinesThatCannotBe) {
  const auto refused = [](auto set) {
    SimOptions options;
    set(options);
    EXPECT_THROW(SimBackend{options}, InvalidArgument);
  };
  for (const double bandwidth : {0.0, -1.0, std::nan("")}) {
    refused([&](SimOptions& options) { options.bytes_per_second = bandwidth; });
  }
  refused([](SimOptions& options) { options.latency = -1; });
  refused([](SimOptions& options) { options.overhead = -1; });
  refused([](SimOptions& options) { options.alignment = 3; });
  SimBackend backend({});
  EXPECT_THROW(backend.advance(-1), InvalidArgument);
}

}  // namespace
}  // namespace prophet
