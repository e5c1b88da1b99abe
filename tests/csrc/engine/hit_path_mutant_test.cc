// A device that acknowledges what it has not seen: slots are overwritten under work that is queued,
// and its numbers tell. The device as it is passes the same.
#include <atomic>
#include <cmath>
#include <optional>
#include <thread>
#include <utility>

#include "engine/hit_path_host.h"
#include "engine/hit_path_rig.h"

namespace prophet {
namespace {

constexpr int kRuns = 20;
// Turns of the background thread, each of which may start a copy: for a mistake to be made, and to
// show that none is.
constexpr int kPatience = 20000, kLooks = 200;

// What the tables of functions below need to know: the run under way.
struct {
  CudaApi api;
  const CudaKernels* kernels = nullptr;
  HitPathHost* gate = nullptr;  // the next layer's arithmetic is queued behind it
  std::byte* arrays = nullptr;  // of the gate's call
  std::atomic<int> looks = 0;
} now;

int look(void* event) {
  ++now.looks;
  now.looks.notify_all();
  return now.api.event_query(event);
}

// A call that asks for an expert which nobody brings: the stream stands until it is answered.
int behind_the_gate(const CudaFfnCall* call, void* stream) {
  if (HitPathHost* gate = std::exchange(now.gate, nullptr)) {
    HitPathCall route{};
    route.tokens = route.top_k = 1;
    route.hidden = 4;
    CudaFfnCall experts = *call;
    experts.tokens = experts.top_k = 1;
    route.x = experts.x = now.arrays;
    route.routing = experts.routing = now.arrays;
    route.ids = experts.ids = reinterpret_cast<const std::int64_t*>(now.arrays + 1024);
    route.out = experts.out = now.arrays + 2048;
    gate->begin_launch(false);
    gate->launch(route, experts, stream, false);
  }
  return now.kernels->expert_ffn(call, stream);
}

int acknowledges_everything(const HitPath* path, const HitPathCall* call, void* stream) {
  const int code = now.kernels->route(path, call, stream);
  std::atomic_ref<std::uint64_t>(path->mail->acknowledged).store(std::uint64_t{1} << 62);
  return code;
}

class HitPathMutant : public HitPathTest {
 protected:
  // A layer finds two experts; before its arithmetic, wishes ask for all slots. Whether the result
  // was right.
  bool right(bool mutated) {
    now.api = api();
    now.kernels = library_kernels();
    CudaApi counted = now.api;
    counted.event_query = look;
    CudaKernels kernels = *now.kernels;
    kernels.expert_ffn = behind_the_gate;
    if (mutated) kernels.route = acknowledges_everything;
    tables_.api = &counted;
    tables_.kernels = &kernels;
    start(4);
    DeviceMemory arrays(api());
    arrays.grow(4096, "a test");
    EXPECT_EQ(api().fill_async(arrays.data(), 0, 4096, stream_->get()), 0);
    EXPECT_EQ(api().fill_async(arrays.data(), 0x3f, 64, stream_->get()), 0);  // weights of 0.7
    now.arrays = arrays.data();

    std::mt19937 random(1);
    Batch batch(1, kGeometry, random);
    DeviceBatch there(api(), batch);
    there.send(api(), batch, stream_->get());
    const LayerBatch layer = there.layer(batch, stream_->get());
    const auto synchronize = [&] { EXPECT_EQ(api().stream_synchronize(stream_->get()), 0); };
    for (int i = 0; i < 3; ++i) {  // the experts are there, and the device has said that it knows
      engine_->forward(0, layer);
      synchronize();
    }
    {
      HitPathHost gate({&now.api, now.kernels}, kGeometry, 1, 1, 0);
      now.gate = &gate;
      engine_->forward(0, layer);
      there.fetch(api(), stream_->get());
      std::optional<HitReport> stands;
      while (!(stands = gate.next())) std::this_thread::yield();
      // Its experts count as used before the wishes: they are the ones to go.
      while (engine_->counters().layer_steps < 4) std::this_thread::yield();
      std::vector<Prefetch> wishes;
      for (std::int32_t expert = 0; expert < 4; ++expert)
        wishes.push_back({{1, expert}, 0.9f, 100});
      engine_->want(wishes);
      const auto landed = [&] {
        return std::all_of(wishes.begin(), wishes.end(), [&](const Prefetch& wish) {
          return engine_->state(wish.key) == Residency::resident;
        });
      };
      const int until = now.looks + (mutated ? kPatience : kLooks);
      for (int seen; (seen = now.looks) < until && !landed();) now.looks.wait(seen);
      EXPECT_EQ(landed(), mutated);
      gate.answer(*stands, false);
      gate.consume(*stands);
      synchronize();
      Lease lease;  // now they may
      const std::vector<std::int32_t> all{0, 1, 2, 3};
      engine_->lease(1, all, lease);
      for (std::int32_t expert : all) engine_->wait(lease, expert);
      engine_->release(lease);
    }
    const std::vector<double> want = batch.expected(*this, 0);
    const std::vector<float> got = there.result();
    bool is_right = true;
    for (std::size_t i = 0; i < want.size(); ++i) is_right &= std::abs(got[i] - want[i]) < 1e-4;
    engine_.reset();
    backend_.reset();
    stream_.reset();
    return is_right;
  }

  const CudaKernels* library_kernels() const {
    return static_cast<const CudaKernels*>(library_->table("prophet_cuda_kernels"));
  }
};

TEST_F(HitPathMutant, NoneIsSeenInTheDeviceAsItIs) {
  for (int run = 0; run < kRuns; ++run) EXPECT_TRUE(right(false)) << "run " << run;
}

TEST_F(HitPathMutant, ASlotOverwrittenBeforeItsRemovalWasAcknowledgedIsCaughtEveryTime) {
  for (int run = 0; run < kRuns; ++run) EXPECT_FALSE(right(true)) << "run " << run;
}

}  // namespace
}  // namespace prophet
