// The way of experts to a device: what the copy lanes reach, what overlaps, what a demand waits.
//
//   Lane/early:E/chunk_kib:C   one class alone, from the host pool, all chunks handed over at once.
//                              of_link: of the bandwidth of one large bare copy in the same run
//   Overlap/compute_percent:P  experts through three slots, each computed on for P % of the time
//                              that it takes over the link. of_longer: wall time over the longer of
//                              copies alone and compute alone; of_serial: over their sum
//   DemandBehindPrefetch       one chunk demanded behind a queue of prefetches. chunks_waited: what
//                              it took longer than on an idle link, in chunks (1 is the bound)
//
// Medians of rounds in which the parts that are compared take turns. The device is the one that
// PROPHET_CUDA_LIB or the library beside this program finds. The emulated library is labelled so:
// of its figures only the ratios mean anything. There the link has 2 GB/s and 20 us unless
// PROPHET_EMULATED_GBPS and PROPHET_EMULATED_LATENCY_US say otherwise, and compute is a copy the
// other way, whose time is modelled; on a GPU compute is copies on the device, as many as it takes.
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"
#include "device/cuda/cuda_backend.h"
#include "device/cuda/cuda_handles.h"

namespace prophet {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20, kChunk = kMiB;
constexpr std::uint64_t kExpert = 4 * kMiB;
constexpr std::uint64_t kExperts = 12, kSlots = 3, kFile = kExperts * kExpert;
// The first copy and the last computing overlap with nothing: many make that little.
constexpr std::uint64_t kTurns = 3 * kExperts;

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + std::ptrdiff_t(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

// A device, a file in the host pool, a compute stream.
class Machine {
 public:
  explicit Machine(std::size_t memory_bytes) {
    setenv("PROPHET_EMULATED_GBPS", "2", 0);
    setenv("PROPHET_EMULATED_LATENCY_US", "20", 0);
    library_ = CudaLibrary::open();
    api = &library_->api();
    emulated = library_->info().emulated != 0;
    const auto name = "prophet-lanes-bench-" + std::to_string(getpid());
    path_ = (std::filesystem::temp_directory_path() / name).string();
    std::ofstream(path_, std::ios::binary).write(std::string(kFile, 'x').data(), kFile);
    CudaOptions options;
    options.api = api;
    options.device = library_->device();
    options.pool_bytes = 2 * kFile;
    backend = make_cuda_backend(options);
    backend->open({path_});
    memory = backend->fast_memory(memory_bytes);
    for (std::uint64_t at = 0; at < kFile; at += kChunk) {
      backend->wait(backend->stage({0, at, kChunk, 0}));
    }
    on_device(*api, options.device, [&] {
      void* made = nullptr;
      cuda_check(*api, api->stream_create(1, &made), "making a stream");
      stream_ = CudaHandle(made, CudaDestroy{api->stream_destroy});
      cuda_check(*api, api->pin(kFile, &made), "page-locking memory");
      host = static_cast<std::byte*>(made);
      pinned_ = CudaHandle(made, CudaDestroy{api->unpin});
    });
  }
  ~Machine() {
    backend.reset();
    std::filesystem::remove(path_);
  }

  void* stream() const { return stream_.get(); }
  Stream compute_stream() const { return reinterpret_cast<Stream>(stream()); }
  void synchronize() { cuda_check(*api, api->stream_synchronize(stream()), "waiting"); }
  double seconds(const std::function<void()>& work) const {
    const Nanos begin = backend->now();
    work();
    return double(backend->now() - begin) * 1e-9;
  }
  // One bare copy of the whole file's size.
  double link_seconds() {
    const std::size_t bytes = std::min<std::size_t>(kFile, memory.size());
    const double time = seconds([&] {
      api->copy_async(memory.data(), host, bytes, CudaCopy::to_device, stream());
      synchronize();
    });
    return time / double(bytes) * double(kFile);
  }
  std::vector<Ticket> bring(std::uint64_t expert, std::byte* to, Lane lane) {
    std::vector<Ticket> tickets;
    for (std::uint64_t at = 0; at < kExpert; at += kChunk) {
      tickets.push_back(backend->copy(lane, to + at, {0, expert * kExpert + at, kChunk, 0}));
    }
    return tickets;
  }

  const CudaApi* api = nullptr;
  bool emulated = false;
  std::unique_ptr<Backend> backend;
  std::span<std::byte> memory;
  std::byte* host = nullptr;

 private:
  std::shared_ptr<const CudaLibrary> library_;
  std::string path_;
  CudaHandle stream_, pinned_;
};

// Nothing, and the benchmark skipped with the reason, where there is no device.
std::unique_ptr<Machine> machine(benchmark::State& state, std::size_t memory_bytes) {
  std::unique_ptr<Machine> made;
  try {
    made = std::make_unique<Machine>(memory_bytes);
    state.SetLabel(made->emulated ? "emulated" : made->backend->description());
  } catch (const Error& error) {
    state.SkipWithError(error.what());
  }
  return made;
}

void Lane_(benchmark::State& state) {
  auto m = machine(state, kFile);
  if (!m) return;
  const Lane lane = state.range(0) != 0 ? Lane::prefetch : Lane::demand;
  const std::uint64_t chunk = std::uint64_t(state.range(1)) << 10;
  std::vector<double> share;
  for (auto _ : state) {
    const double bare = m->link_seconds();
    const double lanes = m->seconds([&] {
      std::vector<Ticket> tickets;
      for (std::uint64_t at = 0; at < kFile; at += chunk) {
        tickets.push_back(m->backend->copy(lane, m->memory.data() + at, {0, at, chunk, 0}));
      }
      for (Ticket each : tickets) m->backend->wait(each);
    });
    state.SetIterationTime(lanes);
    share.push_back(bare / lanes);
  }
  state.counters["of_link"] = median(share);
}
BENCHMARK(Lane_)
    ->Name("Lane")
    ->ArgNames({"early", "chunk_kib"})
    ->ArgsProduct({{0, 1}, {256, 1024, 4096}})
    ->UseManualTime()
    ->Iterations(5)
    ->Unit(benchmark::kMillisecond);

// Work on one slot that lasts `share` of an expert's time over the link.
class Compute {
 public:
  Compute(Machine& m, double share) : m_(m), bytes_(kExpert), times_(1) {
    if (m_.emulated) {
      bytes_ = std::size_t(double(kExpert) * share) / 4096 * 4096;
      return;
    }
    std::vector<double> once;
    for (int i = 0; i < 5; ++i) {
      once.push_back(m_.seconds([&] {
        for (int j = 0; j < 64; ++j) queue(m_.memory.data());
        m_.synchronize();
      }) / 64);
    }
    const double expert = m_.link_seconds() / double(kExperts);
    times_ = std::max(1, int(expert * share / median(once)));
  }
  void queue(const std::byte* slot) {
    for (int i = 0; i < times_; ++i) {
      if (m_.emulated) {
        const std::size_t first = std::min<std::size_t>(bytes_, kExpert);
        m_.api->copy_async(m_.host, slot, first, CudaCopy::to_host, m_.stream());
        if (bytes_ > first) {
          m_.api->copy_async(m_.host, slot, bytes_ - first, CudaCopy::to_host, m_.stream());
        }
      } else {
        std::byte* scratch = m_.memory.data() + kSlots * kExpert;
        m_.api->copy_async(scratch, slot, kExpert, CudaCopy::on_device, m_.stream());
      }
    }
  }

 private:
  Machine& m_;
  std::size_t bytes_;
  int times_;
};

void Overlap(benchmark::State& state) {
  auto m = machine(state, (kSlots + 1) * kExpert);
  if (!m) return;
  Compute compute(*m, double(state.range(0)) / 100);
  std::vector<double> of_longer, of_serial;
  const auto slot = [&](std::uint64_t expert) {
    return m->memory.data() + expert % kSlots * kExpert;
  };
  for (auto _ : state) {
    const double copies = m->seconds([&] {
      std::vector<Ticket> tickets;
      for (std::uint64_t e = 0; e < kTurns; ++e) {
        tickets = m->bring(e % kExperts, slot(e), Lane::demand);
      }
      for (Ticket each : tickets) m->backend->wait(each);
    });
    const double computing = m->seconds([&] {
      for (std::uint64_t e = 0; e < kTurns; ++e) compute.queue(slot(e));
      m->synchronize();
    });
    const double both = m->seconds([&] {
      std::vector<Ticket> last(kSlots, 0);
      for (std::uint64_t e = 0; e < kTurns; ++e) {
        m->backend->after(Lane::demand, last[e % kSlots]);
        for (Ticket each : m->bring(e % kExperts, slot(e), Lane::demand)) {
          m->backend->after(m->compute_stream(), each);
        }
        compute.queue(slot(e));
        last[e % kSlots] = m->backend->mark(m->compute_stream());
      }
      m->synchronize();
    });
    state.SetIterationTime(both);
    of_longer.push_back(both / std::max(copies, computing));
    of_serial.push_back(both / (copies + computing));
  }
  state.counters["of_longer"] = median(of_longer);
  state.counters["of_serial"] = median(of_serial);
}
BENCHMARK(Overlap)
    ->ArgName("compute_percent")
    ->Arg(50)
    ->Arg(100)
    ->Arg(150)
    ->UseManualTime()
    ->Iterations(5)
    ->Unit(benchmark::kMillisecond);

void DemandBehindPrefetch(benchmark::State& state) {
  auto m = machine(state, kFile);
  if (!m) return;
  constexpr std::uint64_t kQueue = 16;
  std::vector<double> waited;
  for (auto _ : state) {
    const auto demand = [&] {
      return m->seconds([&] {
        m->backend->wait(m->backend->copy(Lane::demand, m->memory.data(), {0, 0, kChunk, 0}));
      });
    };
    const double chunk = m->link_seconds() / double(kFile / kChunk), idle = demand();
    std::vector<Ticket> early;
    for (std::uint64_t i = 1; i <= kQueue; ++i) {
      early.push_back(m->backend->copy(Lane::prefetch, m->memory.data() + i * kChunk,
                                       {0, i * kChunk, kChunk, 0}));
    }
    m->backend->wait(early[2]);  // they flow; a quarter of the next is over
    const Nanos until = m->backend->now() + Nanos(chunk * 0.25e9);
    while (m->backend->now() < until) {
    }
    const double behind = demand();
    for (Ticket each : early) m->backend->wait(each);
    state.SetIterationTime(behind);
    waited.push_back((behind - idle) / chunk);
  }
  state.counters["chunks_waited"] = median(waited);
  state.counters["chunks_waited_worst"] = *std::max_element(waited.begin(), waited.end());
}
BENCHMARK(DemandBehindPrefetch)->UseManualTime()->Iterations(25)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace prophet
