// A machine with an NVIDIA device: experts in device memory, a pool of page-locked host memory
// below it, files below that.
//
// A copy looks for its bytes in the pool. What is not there is read from the file into the pool by
// the lanes of the cpu backend, then goes over the link on the copy stream of its class. `stage`
// ends in the pool.
//  * Blocks. A copy is cut into blocks of at most `block_bytes`, the longest run on the link. A
//    block of the prefetch class goes over it only while no demand does or could, no more than one
//    block at a time: a demand waits for one, whatever the device makes of priorities of streams.
//  * Slot reuse. `mark` records an event on a compute stream; `after(lane, mark)` lets the lane's
//    copy stream wait for it, `after(stream, ticket)` the compute stream for a copy's event. The
//    host waits in neither, except for a copy whose bytes are still being read.
//  * Pool. Blocks stay until others need their room, the one used longest ago first, whether or
//    not fast memory holds the same bytes too; what is overwritten in fast memory counts as used
//    then, since it may be asked for again and is nowhere else. A file that changes is refused by
//    later reads; what the pool holds of it is what it was when it was opened.
//  * Errors. What fails one call fails the tickets it concerned, with a sentence; an error that
//    every later call would repeat (a lost device) fails all tickets, now and later, and is
//    `failure()`.
//
// The device of the calling thread is never changed: memory, streams and events are made on
// threads of the backend. Any number of backends may share a device. The destructor ends reads and
// copies in flight before their memory goes; work that the caller queued on compute streams must
// be done.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "device/backend.h"
#include "device/cpu/cpu_backend.h"
#include "device/cuda/cuda_api.h"

namespace prophet {

struct CudaOptions {
  const CudaApi* api = nullptr;  // of a CudaLibrary, which never unloads
  int device = 0;
  // Device memory that someone else allocated (torch), and frees after the backend has gone;
  // null: one allocation of what fast_memory asks for.
  void* memory = nullptr;
  std::size_t memory_bytes = 0;

  std::uint64_t pool_bytes = std::uint64_t{1} << 30;    // taken at once, at least kLeastBlocks
  std::uint64_t piece_bytes = std::uint64_t{64} << 20;  // page-locked in one call
  std::uint64_t block_bytes = std::uint64_t{1} << 20;   // a multiple of 4096
  CpuOptions disk = {};                                 // how files are read
};

constexpr std::uint64_t kLeastBlocks = 16;

// Throws InvalidArgument for numbers out of range, DeviceError when streams or host memory cannot
// be had. Where less host memory can be page-locked than asked for, the pool is smaller and the
// description says why; below kLeastBlocks that is a DeviceError.
std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options);

}  // namespace prophet
