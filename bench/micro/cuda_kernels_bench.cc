// What kernels reach on a device: experts of a decode batch, and the forecaster's layer step.
//
//   Experts/WEIGHTS/tokens:T   one layer's call with distinct top-k per token where there are
//   enough
//                              experts. of_single: its time over that of T calls of one token each
//   Unaligned/tokens:T         the same in bf16 with every matrix two bytes off. of_aligned: time
//                              over that of aligned ones
//   Forecast/rank:R            one step, three layers ahead. of_none_ahead: its time over that of a
//                              step that looks no layer ahead
//
// On a GPU `of_memory` says what part of the memory's bandwidth the weights that must be read took,
// against a large copy on the device in the same run (both directions counted). Medians of rounds
// in which the parts that are compared take turns; each time is that of several calls queued at
// once. The device is the one that PROPHET_CUDA_LIB or the library beside this program finds. On
// the emulated library, labelled so, sizes are small and only the ratios mean anything.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"
#include "device/cuda/cuda_library.h"
#include "kernels/cuda_kernels.h"

namespace prophet {
namespace {

double median(std::vector<double> values) {
  const auto middle = values.begin() + std::ptrdiff_t(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// A device with its kernels, and what was allocated there.
class Machine {
 public:
  const std::shared_ptr<const CudaLibrary> library;
  const CudaApi& api;
  const CudaKernels* kernels = nullptr;
  void* stream = nullptr;
  bool emulated = false;

  Machine() : library(CudaLibrary::open()), api(library->api()) {
    kernels = static_cast<const CudaKernels*>(library->table("prophet_cuda_kernels"));
    emulated = library->info().emulated != 0;
    cuda_check(api, api.use_device(library->device()), "choosing the device");
    cuda_check(api, api.stream_create(0, &stream), "making a stream");
  }
  ~Machine() {
    for (void* memory : memory_) api.release(memory);
    api.stream_destroy(stream);
  }

  // Small numbers of every element type: each byte is 0x11.
  void* allocate(std::size_t bytes) {
    void* made = nullptr;
    cuda_check(api, api.allocate(bytes, &made), "allocating " + std::to_string(bytes) + " bytes");
    memory_.push_back(made);
    cuda_check(api, api.fill_async(made, 0x11, bytes, stream), "filling memory");
    return made;
  }
  template <typename T>
  T* put(const std::vector<T>& values) {
    void* to = allocate(values.size() * sizeof(T));
    cuda_check(
        api,
        api.copy_async(to, values.data(), values.size() * sizeof(T), CudaCopy::to_device, stream),
        "copying to the device");
    synchronize();
    return static_cast<T*>(to);
  }
  void synchronize() { cuda_check(api, api.stream_synchronize(stream), "waiting"); }

  // Seconds of one call of `work`, of `times` queued at once.
  double seconds(int times, const std::function<int()>& work) {
    synchronize();
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < times; ++i) cuda_check(api, work(), "launching");
    synchronize();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
    return took.count() / times;
  }

  // Bytes per second, read and written.
  double bandwidth() {
    if (bandwidth_ > 0) return bandwidth_;
    const std::size_t bytes = std::size_t{256} << 20;
    void *to = allocate(bytes), *from = allocate(bytes);
    std::vector<double> times;
    for (int i = 0; i < 5; ++i) {
      times.push_back(
          seconds(8, [&] { return api.copy_async(to, from, bytes, CudaCopy::on_device, stream); }));
    }
    return bandwidth_ = 2.0 * double(bytes) / median(times);
  }

 private:
  std::vector<void*> memory_;
  double bandwidth_ = 0;
};

struct Sizes {
  int experts, top_k, hidden, inter;
};
Sizes sizes(const Machine& machine) {
  return machine.emulated ? Sizes{8, 2, 256, 64} : Sizes{128, 8, 2048, 768};
}

double bytes_of(CudaWeights type) {
  return type == CudaWeights::f32    ? 4
         : type == CudaWeights::int4 ? 0.5
         : type == CudaWeights::int8 ? 1
                                     : 2;
}

// A layer's experts and calls for them.
class Layer {
 public:
  Layer(Machine& machine, CudaWeights type, std::size_t offset)
      : machine_(machine), size_(sizes(machine)), type_(type) {
    const std::size_t values = std::size_t(double(size_.hidden) * size_.inter * bytes_of(type));
    const std::size_t scales = std::size_t(size_.hidden) * size_.inter / 32 * 2;
    const auto matrix = [&] {
      return static_cast<const unsigned char*>(machine.allocate(values + offset)) + offset;
    };
    if (type >= CudaWeights::int8) {
      std::vector<CudaQuantisedExpert> table(std::size_t(size_.experts));
      for (auto& e : table) {
        for (CudaQuantised* m : {&e.gate, &e.up, &e.down}) {
          *m = {matrix(), machine.allocate(scales), nullptr};
        }
      }
      table_ = machine.put(table);
    } else {
      std::vector<CudaExpert> table(std::size_t(size_.experts));
      for (CudaExpert& e : table) e = {matrix(), matrix(), matrix()};
      table_ = machine.put(table);
    }
  }

  // Tokens take experts in turn.
  CudaFfnCall call(int tokens) {
    std::vector<std::int64_t> ids;
    for (int i = 0; i < tokens * size_.top_k; ++i) ids.push_back(i % size_.experts);
    CudaFfnCall c{};
    c.tokens = tokens;
    c.top_k = size_.top_k;
    c.experts = size_.experts;
    c.hidden = size_.hidden;
    c.inter = size_.inter;
    c.group = 32;
    c.weights = type_;
    c.io = 2;
    c.has_gate = 1;
    c.table = table_;
    c.ids = machine_.put(ids);
    c.x = machine_.allocate(std::size_t(tokens) * size_.hidden * 2);
    c.out = machine_.allocate(std::size_t(tokens) * size_.hidden * 2);
    c.routing = machine_.allocate(ids.size() * 4);
    c.scratch_bytes = machine_.kernels->expert_ffn_scratch_bytes(&c);
    c.scratch = machine_.allocate(c.scratch_bytes);
    return c;
  }
  // Weights that a call must read at least.
  double weight_bytes(int tokens) const {
    const double read = std::min(tokens * size_.top_k, size_.experts);
    return read * 3 * size_.hidden * size_.inter * bytes_of(type_);
  }

 private:
  Machine& machine_;
  const Sizes size_;
  const CudaWeights type_;
  const void* table_ = nullptr;
};

// Runs `work` and `other` in turns; the iteration's time is that of `work`.
void compare(benchmark::State& state, Machine& machine, const std::function<int()>& work,
             const std::function<int()>& other, const char* ratio, double weight_bytes) {
  const int times = machine.emulated ? 1 : 50;
  std::vector<double> mine, its;
  machine.seconds(1, work);  // the first launch loads code
  machine.seconds(1, other);
  for (auto _ : state) {
    mine.push_back(machine.seconds(times, work));
    its.push_back(machine.seconds(times, other));
    state.SetIterationTime(mine.back());
  }
  const double time = median(mine);
  state.counters[ratio] = time / median(its);
  if (machine.emulated) {
    state.SetLabel("emulated: ratios only");
  } else {
    state.counters["of_memory"] = weight_bytes / time / machine.bandwidth();
  }
}

void experts(benchmark::State& state, CudaWeights type) {
  Machine machine;
  const int tokens = int(state.range(0));
  Layer layer(machine, type, 0);
  const CudaFfnCall together = layer.call(tokens);
  std::vector<CudaFfnCall> singles;
  for (int t = 0; t < tokens; ++t) {
    singles.push_back(layer.call(1));
    singles.back().ids = together.ids + std::ptrdiff_t(t) * together.top_k;
  }
  const auto run = [&](const CudaFfnCall& c) {
    return machine.kernels->expert_ffn(&c, machine.stream);
  };
  compare(
      state, machine, [&] { return run(together); },
      [&] {
        for (const CudaFfnCall& c : singles) {
          if (const int code = run(c)) return code;
        }
        return 0;
      },
      "of_single", layer.weight_bytes(tokens));
}

void unaligned(benchmark::State& state) {
  Machine machine;
  const int tokens = int(state.range(0));
  Layer straight(machine, CudaWeights::bf16, 0), askew(machine, CudaWeights::bf16, 2);
  const CudaFfnCall a = askew.call(tokens), b = straight.call(tokens);
  const auto run = [&](const CudaFfnCall& c) {
    return machine.kernels->expert_ffn(&c, machine.stream);
  };
  compare(
      state, machine, [&] { return run(a); }, [&] { return run(b); }, "of_aligned",
      askew.weight_bytes(tokens));
}

// A bank as the shipped ones are: six averages, three of them in the network, three recent blocks.
CudaBank make_bank(Machine& machine, int rank, int ahead) {
  CudaBank b{};
  b.layers = 4;
  b.experts = machine.emulated ? 16 : 128;
  b.top_k = machine.emulated ? 4 : 8;
  b.rank = b.columns = rank;
  b.lanes = b.experts;
  b.decays = b.heads = 6;
  b.banks = b.recents = 3;
  b.lags = b.latents = 2;
  b.ahead = ahead;
  b.pairs = 1;
  b.recent_lag[2] = 1;
  const std::size_t L = 4, E = std::size_t(b.experts), R = std::size_t(rank);
  for (int d = 0; d < b.decays; ++d) b.decay[d] = 0.9f;
  const auto halves = [&](std::size_t n) {
    return static_cast<std::uint16_t*>(machine.allocate(2 * n));
  };
  const auto floats = [&](std::size_t n) { return static_cast<float*>(machine.allocate(4 * n)); };
  b.entries = halves(L * E * 6 * R);
  b.leave = halves(L * 2 * E * R);
  b.ahead_rows = halves(3 * L * E * R);
  b.pair = halves(3 * L * E * E);
  b.enter_bias = floats(R);
  b.norm_gain = b.norm_bias = floats(L * R);
  b.own_weight = floats(L * 6 * 8);
  b.own_bias = floats(L * 6 * E);
  b.leave_mix = floats(12);
  b.next_scale = floats(L * 6);
  b.gap_weight = floats(7);
  b.ahead_bias = floats(3 * L * E);
  b.ahead_prior = b.ahead_scale = floats(3 * L);
  return b;
}

void forecast(benchmark::State& state) {
  Machine machine;
  const int rank = int(state.range(0));
  const CudaBank far = make_bank(machine, rank, 3), near = make_bank(machine, rank, 0);
  const std::size_t E = std::size_t(far.experts), R = std::size_t(rank), K = std::size_t(far.top_k);
  const auto floats = [&](std::size_t n) { return static_cast<float*>(machine.allocate(4 * n)); };
  const CudaBankState kept{floats(4 * 6 * E),
                           floats(4 * 4 * R),
                           floats(4 * E),
                           machine.put(std::vector<std::int32_t>(4 * 2 * kCudaTopK, -1)),
                           floats(4 * 2 * kCudaTopK),
                           floats(R),
                           machine.put(std::vector<std::uint32_t>(1, 0))};
  std::vector<std::int64_t> ids;
  for (int k = 0; k < far.top_k; ++k) ids.push_back(2 * k);
  CudaBankCall call{};
  call.tokens = 1;
  call.top_k = far.top_k;
  call.ids = machine.put(ids);
  call.gaps = floats(E);
  call.probabilities = floats(3 * E);
  const auto run = [&](const CudaBank& bank) {
    return machine.kernels->predict(&bank, &kept, &call, machine.stream);
  };
  compare(
      state, machine, [&] { return run(far); }, [&] { return run(near); }, "of_none_ahead",
      2.0 * double(R) * double(6 * K + 5 * E));
}

void register_all() {
  const std::pair<const char*, CudaWeights> types[] = {
      {"bf16", CudaWeights::bf16}, {"int8", CudaWeights::int8}, {"int4", CudaWeights::int4}};
  for (const auto& [name, type] : types) {
    const CudaWeights of = type;
    benchmark::RegisterBenchmark((std::string("Experts/") + name).c_str(),
                                 [of](benchmark::State& state) { experts(state, of); })
        ->ArgName("tokens")
        ->Arg(1)
        ->Arg(4)
        ->Arg(16)
        ->UseManualTime()
        ->Iterations(9);
  }
  benchmark::RegisterBenchmark("Unaligned", unaligned)
      ->ArgName("tokens")
      ->Arg(1)
      ->Arg(16)
      ->UseManualTime()
      ->Iterations(9);
  benchmark::RegisterBenchmark("Forecast", forecast)
      ->ArgName("rank")
      ->Arg(64)
      ->Arg(512)
      ->UseManualTime()
      ->Iterations(9);
}

const bool registered = (register_all(), true);

}  // namespace
}  // namespace prophet
