// Native expert kernels against the speed of memory.
//
//   cmake -S . -B build -DPROPHET_BENCH=ON && cmake --build build --target expert_ffn_bench
//   build/expert_ffn_bench
//
// Counters: `GB/s` of weights; `DRAM_GB/s` read by the same threads in the same run, after every
// fourth call and for about as long as a call, so that a busy machine disturbs both alike;
// `fraction` of the two medians; `quiet_...` of the fastest tenth of each. Weights rotate through
// 1 GiB and the reads through 512 MiB, so that no cache serves them.
#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>
#include <numeric>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "kernels/expert_ffn.h"
#include "kernels/memory_bandwidth.h"

namespace prophet {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;
constexpr std::size_t kAll = std::size_t{1} << 30;

// 1 GiB of small bf16 weights on huge pages, mapped once for all benchmarks.
class Weights {
 public:
  Weights() {
    void* memory = mmap(nullptr, kAll, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<std::byte*>(memory);
    madvise(data_, kAll, MADV_HUGEPAGE);
    for (std::size_t i = 0; i < kAll / 2; ++i) {
      const auto bits = static_cast<std::uint16_t>(0x3c00 + ((i * 2654435761u) >> 20 & 0x807f));
      std::memcpy(data_ + 2 * i, &bits, 2);
    }
  }
  ~Weights() { munmap(data_, kAll); }

  // Expert `n` of those that fit into `rotation` bytes, round and round.
  FfnJob expert(std::size_t n, const FfnShape& shape, std::size_t rotation) const {
    const std::size_t matrix = static_cast<std::size_t>(shape.hidden) *
                               static_cast<std::size_t>(shape.inter) * size_of(shape.weights);
    const std::byte* at = data_ + n % (rotation / (3 * matrix)) * 3 * matrix;
    return {.gate = at, .up = at + matrix, .down = at + 2 * matrix};
  }

 private:
  std::byte* data_ = nullptr;
};

const Weights& weights() {
  static const Weights one;
  return one;
}

double seconds_now() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

double quantile(std::vector<double>& values, double q) {
  const auto rank = static_cast<std::ptrdiff_t>(q * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + rank, values.end());
  return values[static_cast<std::size_t>(rank)];
}

int all_cores() { return static_cast<int>(std::max(1u, std::thread::hardware_concurrency())); }

// One layer: `experts` experts, each for the same `tokens` tokens.
void layer(benchmark::State& state) {
  const FfnShape shape{.hidden = static_cast<std::int32_t>(state.range(0)),
                       .inter = static_cast<std::int32_t>(state.range(1))};
  const int experts = static_cast<int>(state.range(2));
  const int tokens = static_cast<int>(state.range(3));
  const auto rotation = static_cast<std::size_t>(state.range(4)) * kMiB;
  const int threads = state.range(5) == 0 ? all_cores() : static_cast<int>(state.range(5));
  WorkerPool pool(threads);
  FfnScratch scratch;

  const auto hidden = static_cast<std::size_t>(shape.hidden);
  std::vector<float> x(static_cast<std::size_t>(tokens) * hidden, 0.01f);
  std::vector<float> y(static_cast<std::size_t>(experts) * x.size());
  std::vector<std::int32_t> rows(static_cast<std::size_t>(tokens));
  std::iota(rows.begin(), rows.end(), 0);
  std::vector<float*> outputs;
  for (std::size_t i = 0; i < y.size(); i += hidden) outputs.push_back(y.data() + i);
  std::vector<FfnJob> jobs(static_cast<std::size_t>(experts));

  std::optional<BandwidthProbe> probe;  // reading it would empty the caches of a small rotation
  if (rotation == kAll) probe.emplace();
  const double values = 3.0 * experts * shape.hidden * shape.inter;
  const double bytes = values * static_cast<double>(size_of(shape.weights));
  const auto bytes_to_read = std::max(static_cast<std::size_t>(bytes), 16 * kMiB);
  std::vector<double> calls, reads;
  std::size_t next = 0;
  for (auto _ : state) {
    if (probe && calls.size() % 4 == 0) reads.push_back(probe->read(pool, bytes_to_read));
    for (std::size_t e = 0; e < jobs.size(); ++e) {
      jobs[e] = weights().expert(next++, shape, rotation);
      jobs[e].tokens = tokens;
      jobs[e].rows = rows.data();
      jobs[e].outputs = outputs.data() + e * rows.size();
    }
    const double begin = seconds_now();
    expert_ffn(shape, jobs, x.data(), scratch, pool);
    calls.push_back(seconds_now() - begin);
    state.SetIterationTime(calls.back());
  }
  const double rate = bytes / quantile(calls, 0.5);
  state.counters["us"] = 1e6 * quantile(calls, 0.5);
  state.counters["GB/s"] = 1e-9 * rate;
  state.counters["GFLOP/s"] = 1e-9 * 2 * values * tokens / quantile(calls, 0.5);
  state.counters["quiet_us"] = 1e6 * quantile(calls, 0.1);
  if (probe) {
    state.counters["DRAM_GB/s"] = 1e-9 * quantile(reads, 0.5);
    state.counters["fraction"] = rate / quantile(reads, 0.5);
    state.counters["quiet_DRAM"] = 1e-9 * quantile(reads, 0.9);
    state.counters["quiet_fraction"] = bytes / quantile(calls, 0.1) / quantile(reads, 0.9);
  }
  state.SetLabel(std::string(kernel_isa()) + ", " + std::to_string(threads) + " threads");
}

// Threads: 0 stands for all cores. The reference model's 384 experts take 27 MiB.
BENCHMARK(layer)
    ->ArgNames({"H", "I", "experts", "tokens", "MiB", "threads"})
    ->ArgsProduct({{2048}, {768}, {1, 8}, {1}, {1024}, {1, 0}})
    ->ArgsProduct({{192}, {64}, {4}, {1}, {27}, {1, 0}})
    ->ArgsProduct({{2048, 1024}, {768}, {1}, {2, 4, 8, 16}, {1024}, {1, 0}})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace prophet
