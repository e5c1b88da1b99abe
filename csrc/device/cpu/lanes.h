// How reads are handed to the kernel: the part in which io_uring and pread differ.
//
// Lanes take reads from a LaneQueue, follow a FileReader's rules, and report to the queue.
// Their destructor returns when no read is in flight any more; the queue must have been
// stopped before.
#pragma once

#include <memory>
#include <string>

#include "device/cpu/cpu_backend.h"
#include "device/cpu/file_read.h"
#include "device/cpu/lane_queue.h"

namespace prophet {

class Lanes {
 public:
  virtual ~Lanes() = default;
  virtual std::string description() const = 0;
  // The queue was added to, or stopped.
  virtual void wake() {}
};

// One thread drives one ring. Nothing when this system has no usable io_uring; `why_not` says why.
std::unique_ptr<Lanes> make_uring_lanes(LaneQueue& queue, const FileReader& reader, int depth,
                                        std::string& why_not);

// A pool of at most four threads, each with one pread at a time.
std::unique_ptr<Lanes> make_pread_lanes(LaneQueue& queue, const FileReader& reader, int depth);

// Those that the options ask for. Throws InvalidArgument where io_uring is named and cannot be had;
// where it is only preferred, `note` says why not.
std::unique_ptr<Lanes> make_lanes(LaneQueue& queue, const FileReader& reader,
                                  const CpuOptions& options, std::string& note);
// The same number. Throws InvalidArgument out of range.
int checked_depth(int depth);

}  // namespace prophet
