// A machine without an accelerator: the fast tier is a bounded run of RAM, the slow one a disk.
//
// Lanes read straight into the arena: through io_uring where it can be had, else through a pool of
// preads; past the page cache (O_DIRECT) where the file system allows it. Both give the same
// bytes and the same errors. Compute is synchronous with its caller, so `mark` returns 0 and
// `after(Stream, ticket)` waits.
//
// The destructor drops what is queued and waits for reads in flight: the memory they
// write to is never freed under them.
#pragma once

#include <memory>

#include "device/backend.h"
#include "device/cpu/file_read.h"

namespace prophet {

enum class IoKind : std::uint8_t { auto_, uring, pread };

struct CpuOptions {
  IoKind io = IoKind::auto_;
  bool direct = true;     // ask for O_DIRECT
  int depth = 16;         // reads in flight, 1 .. 1024; pread has at most four
  FaultPlan faults = {};  // for tests: see cpu/file_read.h
};

// Throws InvalidArgument: a depth out of range, or io_uring asked for by name and not to be had.
std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options);

}  // namespace prophet
