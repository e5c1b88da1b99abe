#include "device/cpu/disk_bandwidth.h"

#include <algorithm>
#include <iterator>
#include <random>
#include <vector>

#include "core/error.h"

namespace prophet {
namespace {

constexpr std::uint64_t kLargestChunk = std::uint64_t{64} << 20;

// Sorts part of `values`.
double percentile_ms(std::vector<Nanos>& values, double part) {
  const auto at = values.begin() + std::ptrdiff_t(part * double(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return double(*at) / 1e6;
}

}  // namespace

ReadBandwidth read_bandwidth(const std::string& path, double seconds, std::uint64_t chunk_bytes,
                             int depth, IoKind io) {
  if (!(seconds > 0 && seconds <= 3600) || chunk_bytes == 0 || chunk_bytes > kLargestChunk) {
    throw InvalidArgument("measure for 0 to 3600 seconds with chunks of 1 byte to 64 MiB, not " +
                          std::to_string(seconds) + " s with " + std::to_string(chunk_bytes) +
                          " bytes");
  }
  const auto backend = make_cpu_backend({.io = io, .depth = depth});
  const FileInfo file = backend->open({path}).front();
  const std::uint64_t unit = backend->alignment();
  const std::uint64_t chunk = std::max(chunk_bytes / unit * unit, unit);
  if (file.size < chunk) {
    throw ReadError(path + " holds " + std::to_string(file.size) +
                    " bytes, less than one chunk of " + std::to_string(chunk) +
                    ": name a larger file");
  }
  const auto memory = backend->fast_memory(chunk * std::uint64_t(depth));
  std::mt19937_64 random(file.size);
  std::uniform_int_distribution<std::uint64_t> place(0, (file.size - chunk) / unit);

  std::vector<Ticket> running(static_cast<std::size_t>(depth), 0);  // by part of the memory
  std::vector<Nanos> began(running.size(), 0), took;
  const auto start = [&](std::size_t part) {
    began[part] = backend->now();
    running[part] = backend->copy(Lane::demand, memory.data() + part * chunk,
                                  {0, place(random) * unit, chunk, 0});
  };
  ReadBandwidth result;
  const Nanos begin = backend->now();
  const Nanos end = begin + Nanos(seconds * 1e9);
  for (std::size_t part = 0; part < running.size(); ++part) start(part);
  Nanos now = begin;
  std::vector<Ticket> waiting;
  while (true) {
    waiting.clear();
    std::copy_if(running.begin(), running.end(), std::back_inserter(waiting),
                 [](Ticket ticket) { return ticket != 0; });
    if (waiting.empty()) break;
    backend->wait_any(waiting);
    now = backend->now();
    for (std::size_t part = 0; part < running.size(); ++part) {
      if (running[part] == 0 || !backend->poll(running[part])) continue;
      took.push_back(now - began[part]);
      result.bytes += chunk;
      running[part] = 0;
      if (now < end) start(part);
    }
  }
  result.seconds = double(now - begin) / 1e9;
  result.bytes_per_second = double(result.bytes) / result.seconds;
  result.p50_ms = percentile_ms(took, 0.50);
  result.p99_ms = percentile_ms(took, 0.99);
  result.io = backend->description();
  return result;
}

}  // namespace prophet
