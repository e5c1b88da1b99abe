// The CUDA backend on the emulated library: the same table as on a device, memory that the host
// cannot follow, copy engines that take their time.
#include <gmock/gmock.h>

#include <cstring>

#include "device/cuda/cuda_handles.h"
#include "device/cuda_rig.h"
#include "emulated_cuda.h"

namespace prophet::testing_device {
namespace {

using testing::HasSubstr;
using testing_cuda::EmulatedCuda;
using testing_cuda::kEmulatedLibrary;

constexpr std::uint64_t kExperts = 6, kSlots = 2;

// What kernels and the host's reads of device memory are here: copies on a stream.
class DeviceReader {
 public:
  explicit DeviceReader(const CudaApi& api) : api_(api) {
    cuda_check(api_, api_.stream_create(1, &stream_), "making a stream");
  }
  ~DeviceReader() { api_.stream_destroy(stream_); }
  DeviceReader(const DeviceReader&) = delete;
  void* stream() const { return stream_; }
  Stream compute() const { return reinterpret_cast<Stream>(stream_); }
  void read(const std::byte* from, std::span<std::byte> to) {
    cuda_check(api_, api_.copy_async(to.data(), from, to.size(), CudaCopy::to_host, stream_),
               "reading device memory");
    wait();
  }
  void fill(std::span<std::byte> memory, std::byte with) {
    cuda_check(api_, api_.fill_async(memory.data(), int(with), memory.size(), stream_),
               "filling device memory");
    wait();
  }
  void wait() { cuda_check(api_, api_.stream_synchronize(stream_), "waiting for a stream"); }

 private:
  const CudaApi& api_;
  void* stream_ = nullptr;
};

#ifdef PROPHET_EMULATED_LIBRARY
class EmulatedRig final : public BackendRig {
 public:
  explicit EmulatedRig(CudaOptions options) : library_(CudaLibrary::open(kEmulatedLibrary)) {
    options.api = &library_->api();
    rig_.emplace(options);
    reader_.emplace(*options.api);
  }
  Backend& backend() override { return rig_->backend(); }
  std::vector<std::string> paths() const override { return rig_->paths(); }
  Ticket copy_that_fails(Lane lane, std::byte* to, const Extent& from) override {
    return rig_->copy_that_fails(lane, to, from);
  }
  void destroy() override { rig_->destroy(); }
  void read(const std::byte* from, std::span<std::byte> to) override { reader_->read(from, to); }
  void fill(std::span<std::byte> memory, std::byte with) override { reader_->fill(memory, with); }

 private:
  std::shared_ptr<const CudaLibrary> library_;
  std::optional<CudaRig> rig_;
  std::optional<DeviceReader> reader_;
};

RigMaker rig(const std::string& name, const CudaOptions& options) {
  return {name, [=] { return std::make_unique<EmulatedRig>(options); }};
}

INSTANTIATE_TEST_SUITE_P(EmulatedCuda, BackendConformance,
                         testing::Values(rig("tight", small_pool()),
                                         rig("uring", small_pool(IoKind::auto_, 64))),
                         RigMaker::name_of);
#endif

class EmulatedBackend : public EmulatedCuda {
 protected:
  void SetUp() override {
    EmulatedCuda::SetUp();
    if (IsSkipped()) return;
    path_ = files_.make("weights", 0, kExperts * kBlock);
  }

  std::unique_ptr<Backend> make() {
    CudaOptions options = small_pool();
    options.api = &api();
    auto backend = make_cuda_backend(options);
    backend->open({path_});
    return backend;
  }

  // All experts through two slots, each read on a compute stream between its copy and the slot's
  // next. Counts what came out right; failed tickets are counted and gone past.
  struct Outcome {
    int right = 0, failed = 0;
  };
  Outcome bring_all() {
    const auto backend = make();
    const auto memory = backend->fast_memory(kSlots * kBlock);
    DeviceReader reader(api());
    void* pinned = nullptr;
    cuda_check(api(), api().pin(kExperts * kBlock, &pinned), "page-locking results");
    const CudaHandle results(pinned, CudaDestroy{api().unpin});
    auto* out = static_cast<std::byte*>(pinned);
    std::memset(out, 0, kExperts * kBlock);
    Outcome outcome;
    std::vector<Ticket> last(kSlots, 0);
    for (std::uint64_t i = 0; i < kExperts; ++i) {
      const Lane lane = i % 3 == 2 ? Lane::prefetch : Lane::demand;
      std::byte* slot = memory.data() + i % kSlots * kBlock;
      backend->after(lane, last[i % kSlots]);
      const Ticket ticket = backend->copy(lane, slot, {0, i * kBlock, kBlock, 0});
      try {
        backend->after(reader.compute(), ticket);
        cuda_check(
            api(),
            api().copy_async(out + i * kBlock, slot, kBlock, CudaCopy::to_host, reader.stream()),
            "reading an expert");
        last[i % kSlots] = backend->mark(reader.compute());
      } catch (const Error& error) {
        EXPECT_THAT(error.what(), HasSubstr("failed"));
        ++outcome.failed;
        api().stream_synchronize(reader.stream());  // in place of the mark that could not be had
      }
    }
    reader.wait();
    for (std::uint64_t i = 0; i < kExperts; ++i) {
      bool same = true;
      for (std::uint64_t at = 0; at < kBlock; ++at) {
        same = same && out[i * kBlock + at] == ManualBackend::byte_at(0, i * kBlock + at);
      }
      outcome.right += same;
    }
    return outcome;
  }

  TempFiles files_;
  std::string path_;
};

TEST_F(EmulatedBackend, ExpertsAreRightOnASlowLinkAndAtRandomDelays) {
  for (const char* seed : {"0", "1", "2", "3", "4"}) {
    machine({{"SEED", seed}, {"GBPS", "0.5"}, {"LATENCY_US", "200"}});
    EXPECT_EQ(bring_all().right, int(kExperts)) << "seed " << seed;
  }
}

TEST_F(EmulatedBackend, ThePathOfACopyNeverMakesItsCallerWait) {
  const auto backend = make();
  const auto memory = backend->fast_memory(kSlots * kBlock);
  for (std::uint64_t i = 0; i < 2; ++i) backend->wait(backend->stage({0, i * kBlock, kBlock, 0}));
  DeviceReader reader(api());
  const std::uint64_t before = api().synchronising_calls();
  const Ticket mark = backend->mark(reader.compute());
  backend->wait(mark);
  backend->after(Lane::demand, mark);
  EXPECT_EQ(api().synchronising_calls(), before);
}

TEST_F(EmulatedBackend, AnyCallMayFail) {
  bring_all();
  const std::uint64_t calls = control_->calls("");
  ASSERT_GT(calls, 40u);
  for (const char* code : {"2", "719"}) {
    for (std::uint64_t nth = 1; nth <= calls; nth += nth < 20 ? 1 : 3) {
      SCOPED_TRACE("call number " + std::to_string(nth) + " returns " + code);
      machine({{"FAIL", ("*:" + std::to_string(nth) + "=" + code).c_str()}});
      try {
        const Outcome outcome = bring_all();
        EXPECT_GE(outcome.right + outcome.failed, int(kExperts));
      } catch (const Error& error) {
        EXPECT_THAT(error.what(), HasSubstr("failed"));
      }
      machine({});
      for (const char* what : {"stream", "event", "device", "pinned"}) {
        EXPECT_EQ(control_->live(what), 0u) << what;
      }
    }
  }
  EXPECT_EQ(bring_all().right, int(kExperts));
}

TEST_F(EmulatedBackend, ALostDeviceIsASentenceAndTheNextOneWorks) {
  auto backend = make();
  const auto memory = backend->fast_memory(kExperts * kBlock);
  control_->lose_device(719);
  const Ticket ticket = backend->copy(Lane::demand, memory.data(), {0, 0, kBlock, 0});
  EXPECT_THROW(backend->wait(ticket), DeviceError);
  EXPECT_THAT(backend->failure(), HasSubstr("start it again"));
  EXPECT_THROW(make(), DeviceError);
  backend.reset();
  machine({});
  EXPECT_EQ(bring_all().right, int(kExperts));
}

TEST_F(EmulatedBackend, WherePageLockingIsRefusedThePoolIsSmaller) {
  machine({{"PINNED_MB", "2"}});
  CudaOptions options = small_pool(IoKind::pread, 64);
  options.api = &api();
  const auto backend = make_cuda_backend(options);
  EXPECT_EQ(backend->staging().capacity, 2u << 20);
  EXPECT_THAT(backend->description(), HasSubstr("page-locking"));
}

}  // namespace
}  // namespace prophet::testing_device
