// An engine on the emulated device, with layers queued there: what the tests of the hit path share.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "device/cuda/cuda_backend.h"
#include "emulated_cuda.h"
#include "engine/device_memory.h"
#include "engine_fixture.h"

namespace prophet {

constexpr Geometry kGeometry{3, 8, 2};

// A file of all experts, deleted at the end.
class ExpertFile {
 public:
  explicit ExpertFile(std::uint64_t bytes) {
    path_ = std::filesystem::temp_directory_path() /
            ("prophet-hit-path-" + std::to_string(reinterpret_cast<std::uintptr_t>(this)) + "-" +
             std::to_string(std::chrono::steady_clock::now().time_since_epoch().count()));
    std::vector<std::byte> content(bytes);
    float_content(0, 0, content);
    std::ofstream(path_, std::ios::binary)
        .write(reinterpret_cast<const char*>(content.data()), std::streamsize(bytes));
  }
  ~ExpertFile() { std::filesystem::remove(path_); }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

// x, ids, weights and out of a batch on the device.
struct DeviceBatch {
  DeviceBatch(const CudaApi& api, const Batch& batch)
      : x(api, batch.x.size() * 4),
        ids(api, batch.ids.size() * 8),
        weights(api, batch.weights.size() * 4),
        out(api, batch.out.size() * 4) {}
  struct Block {
    Block(const CudaApi& api, std::size_t bytes) : there(api), here(api) {
      there.grow(bytes, "a test");
      here.grow(bytes, "a test");
    }
    DeviceMemory there;
    PinnedMemory here;
  };
  Block x, ids, weights, out;

  // Queues the copies; `batch` may go at once.
  void send(const CudaApi& api, const Batch& batch, void* stream) {
    const auto one = [&](Block& to, const void* from) {
      std::memcpy(to.here.data(), from, to.here.size());
      EXPECT_EQ(api.copy_async(to.there.data(), to.here.data(), to.here.size(), CudaCopy::to_device,
                               stream),
                0);
    };
    one(x, batch.x.data());
    one(ids, batch.ids.data());
    one(weights, batch.weights.data());
  }
  LayerBatch layer(const Batch& batch, void* stream) const {
    LayerBatch call{batch.tokens,         batch.top_k,     DType::f32,
                    DType::f32,           x.there.data(),  ids.there.as<std::int64_t>(),
                    weights.there.data(), out.there.data()};
    call.on_device = true;
    call.stream = reinterpret_cast<Stream>(stream);
    return call;
  }
  void fetch(const CudaApi& api, void* stream) {
    EXPECT_EQ(api.copy_async(out.here.data(), out.there.data(), out.here.size(), CudaCopy::to_host,
                             stream),
              0);
  }
  std::vector<float> result() const {
    const float* values = out.here.as<float>();
    return {values, values + out.here.size() / 4};
  }
};

class HitPathTest : public testing_cuda::EmulatedCuda {
 protected:
  void SetUp() override {
    EmulatedCuda::SetUp();
    if (IsSkipped()) return;
    tables_.api = &api();
    tables_.kernels = static_cast<const CudaKernels*>(library_->table("prophet_cuda_kernels"));
    ASSERT_NE(tables_.kernels, nullptr);
  }
  void TearDown() override {
    engine_.reset();
    backend_.reset();
    stream_.reset();
    EmulatedCuda::TearDown();
  }

  void start(std::int32_t slots, std::unique_ptr<Predictor> predictor = nullptr) {
    CudaOptions cuda;
    cuda.api = &api();
    cuda.disk.io = IoKind::pread;
    cuda.disk.direct = false;
    cuda.pool_bytes = 1 << 20;
    cuda.block_bytes = 4096;
    backend_ = make_cuda_backend(cuda);
    store_ = std::make_shared<SyntheticStore>(kGeometry, kExpertBytes, 4096);
    std::uint64_t bytes = 0;
    for (std::int32_t i = 0; i < kGeometry.total(); ++i) {
      for (const Extent& e : store_->where(kGeometry.key(i))) {
        bytes = std::max(bytes, e.offset + e.bytes);
      }
    }
    file_ = std::make_unique<ExpertFile>(bytes);
    backend_->open({file_->path().string()});
    options_.slots = slots;
    options_.device = tables_;
    options_.mover.chunk_bytes = 4096;
    engine_ = std::make_unique<Engine>(store_, backend_, options_, std::move(predictor));
    FfnLayout layout;
    layout.shape = {kHidden, kInter, DType::f32, Activation::silu, true};
    layout.gate = {0, 0};
    layout.up = {0, kMatrix};
    layout.down = {0, 2 * kMatrix};
    engine_->set_ffn(layout);
    stream_ = std::make_unique<DeviceStream>(api());
  }

 public:
  std::uint64_t file_offset(ExpertKey key) const { return store_->where(key)[0].offset; }

 protected:
  void expect_right(const Batch& batch, std::int32_t layer, const std::vector<float>& got) {
    const std::vector<double> want = batch.expected(*this, layer);
    for (std::size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-4) << i;
  }
  void fill() {  // every expert has been asked for once
    std::vector<std::int32_t> all(kGeometry.experts_per_layer);
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = std::int32_t(i);
    for (std::int32_t layer = 0; layer < kGeometry.layers; ++layer) {
      Lease lease;
      engine_->lease(layer, all, lease);
      for (std::int32_t expert : all) engine_->wait(lease, expert);
      engine_->release(lease);
    }
  }

  EngineOptions options_;
  DeviceTables tables_;
  std::shared_ptr<Backend> backend_;
  std::shared_ptr<SyntheticStore> store_;
  std::unique_ptr<ExpertFile> file_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<DeviceStream> stream_;
};

}  // namespace prophet
