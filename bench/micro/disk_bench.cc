// What the disk lanes bring, by chunk and depth, through io_uring and through preads.
//
//   Lanes/io:K/chunk_kib:C/depth:D   64 chunks at random places of one file, all handed over at
//   once and
//                                    awaited: what a layer's demand looks like. bytes/s.
//   CopyCall                         the caller's cost of handing over one small copy and polling
//   it.
//
// PROPHET_BENCH_FILE names the file to read, on the disk to measure and of at least 64 MiB;
// without it a file of 256 MiB is made in the system's folder for temporary files.
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "device/cpu/cpu_backend.h"

namespace prophet {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
constexpr std::size_t kChunks = 64;

class BenchFile {
 public:
  BenchFile() {
    if (const char* named = std::getenv("PROPHET_BENCH_FILE")) {
      path_ = named;
      return;
    }
    const auto name = "prophet-disk-bench-" + std::to_string(getpid());
    path_ = (std::filesystem::temp_directory_path() / name).string();
    ours_ = true;
    std::mt19937_64 random(1);
    std::vector<std::uint64_t> block(kMiB / 8);
    std::ofstream out(path_, std::ios::binary);
    for (int i = 0; i < 256; ++i) {
      for (std::uint64_t& word : block) word = random();
      out.write(reinterpret_cast<const char*>(block.data()), kMiB);
    }
  }
  ~BenchFile() {
    if (ours_) std::filesystem::remove(path_);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  bool ours_ = false;
};

const std::string& bench_file() {
  static const BenchFile file;
  return file.path();
}

void Lanes(benchmark::State& state) {
  CpuOptions options;
  options.io = state.range(0) != 0 ? IoKind::uring : IoKind::pread;
  options.depth = static_cast<int>(state.range(2));
  const std::uint64_t chunk = std::uint64_t(state.range(1)) << 10;
  std::unique_ptr<Backend> backend;
  std::uint64_t places = 0;
  try {
    backend = make_cpu_backend(options);
    places = backend->open({bench_file()}).front().size / chunk;
  } catch (const std::exception& error) {
    return state.SkipWithError(error.what());
  }
  if (places == 0) return state.SkipWithError("the file is smaller than one chunk");
  const auto memory = backend->fast_memory(kChunks * chunk);
  std::fill(memory.begin(), memory.end(), std::byte{1});  // pages are there before the clock runs
  std::mt19937_64 random(2);
  std::vector<Ticket> tickets(kChunks);
  for (auto _ : state) {
    for (std::size_t i = 0; i < kChunks; ++i) {
      tickets[i] = backend->copy(Lane::demand, memory.data() + i * chunk,
                                 {0, random() % places * chunk, chunk, 0});
    }
    for (Ticket each : tickets) backend->wait(each);
  }
  state.SetBytesProcessed(std::int64_t(state.iterations() * kChunks * chunk));
  state.SetLabel(backend->description());
}
BENCHMARK(Lanes)
    ->ArgNames({"uring", "chunk_kib", "depth"})
    ->ArgsProduct({{0, 1}, {256, 1024, 4096}, {1, 4, 8, 16, 32}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace prophet
