#include "device/manual/manual_backend.h"

#include <gmock/gmock.h>

#include <atomic>
#include <thread>

#include "device/backend_conformance.h"

namespace prophet {
namespace {

using testing_device::BackendConformance;
using testing_device::BackendRig;
using testing_device::RigMaker;

class ManualRig final : public BackendRig {
 public:
  explicit ManualRig(std::uint64_t alignment) {
    ManualOptions options;
    options.alignment = alignment;
    options.file_bytes = (std::uint64_t{2} << 20) + 123;
    backend_ = std::make_unique<ManualBackend>(options);
  }
  Backend& backend() override { return *backend_; }
  std::vector<std::string> paths() const override { return {"a", "b", "c"}; }
  Ticket copy_that_fails(Lane lane, std::byte* to, const Extent& from) override {
    const Ticket ticket = backend_->copy(lane, to, from);
    backend_->fail(ticket, "a: as the test wished");
    return ticket;
  }
  void destroy() override { backend_.reset(); }

 private:
  std::unique_ptr<ManualBackend> backend_;
};

INSTANTIATE_TEST_SUITE_P(
    Manual, BackendConformance,
    testing::Values(RigMaker{"byte", [] { return std::make_unique<ManualRig>(1); }},
                    RigMaker{"page", [] { return std::make_unique<ManualRig>(4096); }}),
    RigMaker::name_of);

class ManualBackendTest : public testing::Test {
 protected:
  void start(ManualOptions options = {}) {
    backend_ = std::make_unique<ManualBackend>(options);
    backend_->open({"a", "b"});
    memory_ = backend_->fast_memory(1 << 16);
  }
  Ticket copy(Lane lane, std::uint64_t offset) {
    return backend_->copy(lane, memory_.data() + offset, {0, offset, 100, 0});
  }

  std::unique_ptr<ManualBackend> backend_;
  std::span<std::byte> memory_;
};

TEST_F(ManualBackendTest, CopiesLandWhenToldAndShowPoisonBefore) {
  start();
  const Ticket a = copy(Lane::demand, 0), b = copy(Lane::demand, 100);
  EXPECT_FALSE(backend_->poll(a));
  EXPECT_EQ(memory_[150], ManualBackend::kPoison);
  backend_->land(b);
  EXPECT_FALSE(backend_->poll(a));
  EXPECT_TRUE(backend_->poll(b));
  EXPECT_EQ(memory_[50], ManualBackend::kPoison);
  EXPECT_EQ(memory_[150], ManualBackend::byte_at(0, 150));
  EXPECT_EQ(backend_->pending().size(), 1u);
  EXPECT_THROW(backend_->land(b), StateError);
  backend_->land_all();
  EXPECT_TRUE(backend_->poll(a));
}

TEST_F(ManualBackendTest, AGatedCopyCannotBeLandedFirst) {
  start();
  const Ticket a = copy(Lane::prefetch, 0), b = copy(Lane::prefetch, 100);
  backend_->after(Lane::demand, b);
  backend_->after(Lane::demand, a);
  const Ticket c = copy(Lane::demand, 200);
  EXPECT_THROW(backend_->land(c), StateError);
  backend_->land(a);
  EXPECT_THROW(backend_->land(c), StateError);
  backend_->fail(b, "b: no");
  backend_->land(c);
  EXPECT_TRUE(backend_->poll(c));
}

TEST_F(ManualBackendTest, ASeedDrawsTheOrderOfLandings) {
  const auto order = [&](std::uint64_t seed) {
    ManualOptions options;
    options.seed = seed;
    start(options);
    std::vector<Ticket> waiting, landed;
    for (int i = 0; i < 20; ++i) waiting.push_back(copy(Lane::demand, 100 * i));
    while (!waiting.empty()) {
      backend_->wait_any(waiting);
      std::erase_if(waiting, [&](Ticket each) {
        if (!backend_->poll(each)) return false;
        landed.push_back(each);
        return true;
      });
    }
    return landed;
  };
  EXPECT_EQ(order(1), order(1));
  EXPECT_NE(order(1), order(2));
}

TEST_F(ManualBackendTest, TheClockMovesByWhatLands) {
  ManualOptions options;
  options.ns_per_byte = 2;
  start(options);
  const Nanos begin = backend_->now();
  const Ticket a = copy(Lane::demand, 0);
  backend_->advance(50);
  backend_->wait(a);
  EXPECT_EQ(backend_->now() - begin, 250);
  EXPECT_EQ(backend_->stats(Lane::demand).busy, 250);
  EXPECT_EQ(backend_->busy(), 250);
}

TEST_F(ManualBackendTest, WaitingBlocksWhenAskedTo) {
  ManualOptions options;
  options.wait = ManualOptions::Wait::block;
  start(options);
  const Ticket a = copy(Lane::demand, 0), b = copy(Lane::demand, 100);
  std::atomic<bool> done{false};
  std::thread waiter([&] {
    backend_->wait(a);
    done = true;
  });
  backend_->land(b);
  EXPECT_FALSE(done);
  backend_->land(a);
  waiter.join();
  EXPECT_TRUE(done);
}

TEST_F(ManualBackendTest, FilesHoldWhatTheTestSays) {
  ManualOptions options;
  options.content = [](std::int32_t file, std::uint64_t offset, std::span<std::byte> out) {
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = std::byte(file + offset + i);
  };
  start(options);
  backend_->wait(backend_->copy(Lane::demand, memory_.data(), {1, 10, 5, 0}));
  EXPECT_THAT(std::vector<std::byte>(memory_.begin(), memory_.begin() + 5),
              testing::ElementsAre(std::byte{11}, std::byte{12}, std::byte{13}, std::byte{14},
                                   std::byte{15}));
}

}  // namespace
}  // namespace prophet
