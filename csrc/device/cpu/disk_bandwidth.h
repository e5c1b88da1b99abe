// How fast can this disk bring experts? Random reads of a file through the lanes of the cpu
// backend.
#pragma once

#include <cstdint>
#include <string>

#include "device/cpu/cpu_backend.h"

namespace prophet {

struct ReadBandwidth {
  double bytes_per_second = 0;
  double seconds = 0;  // measured: from the first read to the last landing
  std::uint64_t bytes = 0;
  double p50_ms = 0, p99_ms = 0;  // of one read, from its start to the caller's knowing
  std::string io;                 // how bytes were moved, as Backend::description
};

// Reads chunks of `chunk_bytes` at random places of the file for `seconds`, `depth` at a time, past
// the page cache where the file system allows it. Throws ReadError when the file cannot be read or
// holds less than one chunk, InvalidArgument for numbers out of range.
ReadBandwidth read_bandwidth(const std::string& path, double seconds, std::uint64_t chunk_bytes,
                             int depth, IoKind io);

}  // namespace prophet
