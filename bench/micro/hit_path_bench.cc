// A layer on a device whose experts are all there: queued without the host, or served by leases.
//
//   HitPath/tokens:T   host_of_leases: time until `forward` is back, over that by leases
//                      wall_of_leases: the same until the device is done as well
//                      waits_by_hits, waits_by_leases: calls a layer that wait for the device
// The time shown is a layer's wall time by hits. Medians of rounds in which the two roads take
// turns; a round queues kQueued layers, then waits once. The device is the one that
// PROPHET_CUDA_LIB or the library beside this program finds. On the emulated library, labelled so,
// sizes are small and only the ratios mean anything: there its kernels, two more by hits than by
// leases, run on the host's processors.
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "core/error.h"
#include "device/cuda/cuda_backend.h"
#include "engine/device_memory.h"
#include "engine/engine.h"
#include "store/synthetic_store.h"

namespace prophet {
namespace {

constexpr int kQueued = 8;  // less than the calls that a device may be ahead of the host
constexpr Geometry kGeometry{4, 16, 4};

using Clock = std::chrono::steady_clock;
double seconds(Clock::time_point since) {
  return std::chrono::duration<double>(Clock::now() - since).count();
}
double median(std::vector<double> values) {
  const auto middle = values.begin() + std::ptrdiff_t(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// An engine with all experts of an empty file on the device.
class Road {
 public:
  Road(const CudaLibrary& library, const std::string& path, int hidden, int inter, bool hit_path) {
    const std::uint64_t matrix = std::uint64_t(hidden) * inter * 2;
    auto store = std::make_shared<SyntheticStore>(kGeometry, 3 * matrix, 4096);
    std::ofstream(path, std::ios::binary).flush();
    std::filesystem::resize_file(path, store->file_bytes());
    CudaOptions cuda;
    cuda.api = &library.api();
    cuda.device = library.device();
    cuda.pool_bytes = std::uint64_t{64} << 20;
    std::shared_ptr<Backend> backend = make_cuda_backend(cuda);
    backend->open({path});
    EngineOptions options;
    options.slots = kGeometry.total();
    options.hit_path = hit_path;
    const void* kernels = library.table("prophet_cuda_kernels");
    options.device = {cuda.api, static_cast<const CudaKernels*>(kernels), cuda.device};
    engine = std::make_unique<Engine>(store, backend, options);
    const FfnShape shape{hidden, inter, DType::bf16, Activation::silu, true};
    engine->set_ffn({shape, {0, 0}, {0, matrix}, {0, 2 * matrix}});
    std::vector<std::int32_t> all(kGeometry.experts_per_layer);
    std::iota(all.begin(), all.end(), 0);
    Lease lease;
    for (std::int32_t layer = 0; layer < kGeometry.layers; ++layer) {
      engine->lease(layer, all, lease);
      for (std::int32_t e : all) engine->wait(lease, e);
      engine->release(lease);
    }
  }

  std::unique_ptr<Engine> engine;
  std::vector<double> host, wall;  // of a layer
  double waits = 0, layers = 0;
  void round(const CudaApi& api, const LayerBatch& batch, void* stream) {
    const std::uint64_t before = api.synchronising_calls();
    const auto begin = Clock::now();
    for (int i = 0; i < kQueued; ++i) engine->forward(i % kGeometry.layers, batch);
    host.push_back(seconds(begin) / kQueued);
    waits += double(api.synchronising_calls() - before);
    layers += kQueued;
    cuda_check(api, api.stream_synchronize(stream), "waiting");
    wall.push_back(seconds(begin) / kQueued);
  }
};

void hit_path(benchmark::State& state) {
  const auto library = CudaLibrary::open();
  if (library->devices() == 0) return state.SkipWithError(library->reason().c_str());
  const CudaApi& api = library->api();
  const bool emulated = library->info().emulated != 0;
  const int hidden = emulated ? 64 : 2048, inter = emulated ? 32 : 768;
  cuda_check(api, api.use_device(library->device()), "choosing the device");
  const DeviceStream stream(api);
  const std::int32_t tokens = std::int32_t(state.range(0)), k = kGeometry.top_k;
  std::vector<std::int64_t> ids;
  for (int i = 0; i < tokens * k; ++i) ids.push_back(i % kGeometry.experts_per_layer);
  const std::size_t row = std::size_t(tokens) * hidden * 2, id_bytes = ids.size() * 8;
  DeviceMemory x(api), out(api), there(api), weights(api);
  for (DeviceMemory* each : {&x, &out, &there, &weights}) {
    each->grow(std::max(row, id_bytes), "a batch");  // of small numbers
    cuda_check(api, api.fill_async(each->data(), 0x11, each->size(), stream.get()), "filling");
  }
  cuda_check(api,
             api.copy_async(there.data(), ids.data(), id_bytes, CudaCopy::to_device, stream.get()),
             "copying to the device");
  LayerBatch batch;
  batch.tokens = tokens, batch.top_k = k;
  batch.x = x.data(), batch.out = out.data();
  batch.ids = there.as<std::int64_t>(), batch.weights = weights.data();
  batch.on_device = true;
  batch.stream = reinterpret_cast<Stream>(stream.get());

  const std::string path =
      std::filesystem::temp_directory_path() / ("prophet-hit-path-" + std::to_string(getpid()));
  Road hits(*library, path, hidden, inter, true);
  Road leases(*library, path, hidden, inter, false);
  std::filesystem::remove(path);
  for (Road* road : {&hits, &leases}) {  // memory grows
    road->round(api, batch, stream.get());
    road->host = road->wall = {};
    road->waits = road->layers = 0;
  }
  for (auto _ : state) {
    hits.round(api, batch, stream.get());
    leases.round(api, batch, stream.get());
    state.SetIterationTime(hits.wall.back());
  }
  state.counters["host_of_leases"] = median(hits.host) / median(leases.host);
  state.counters["wall_of_leases"] = median(hits.wall) / median(leases.wall);
  state.counters["waits_by_hits"] = hits.waits / hits.layers;
  state.counters["waits_by_leases"] = leases.waits / leases.layers;
  if (emulated) state.SetLabel("emulated: ratios only");
}
BENCHMARK(hit_path)
    ->Name("HitPath")
    ->ArgName("tokens")
    ->ArgsProduct({{1, 3}})
    ->UseManualTime()
    ->Iterations(9)
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace prophet
