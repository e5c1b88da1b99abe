// One read of one chunk, from the first attempt to the last byte or a reason why not.
//
// The rules are the same whichever way bytes are brought: a file that changed is refused before
// and after the read; short reads go on where they stopped (at the last whole unit where the file
// is direct); EINTR and EAGAIN are tried again; a read that keeps making no progress fails.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>

#include "device/backend.h"
#include "device/cpu/file_set.h"

namespace prophet {

// What a test makes go wrong with one attempt of one read. The bytes that the fault
// withholds are overwritten with 0xA5: they cannot be mistaken for weights.
struct Fault {
  int error = 0;                              // errno of the attempt; 0: none
  std::uint64_t at_most = std::uint64_t(-1);  // bytes the attempt yields
};

// Asked before every attempt, on the lane's thread, with the number of the attempt
// (from 0); may block, which is a slow disk. Empty: no faults.
using FaultPlan = std::function<Fault(std::uint64_t attempt, Lane lane, const Extent& from)>;

struct FileRead {
  Ticket ticket = 0;
  Lane lane = Lane::demand;
  std::byte* to = nullptr;
  Extent from;
  std::uint64_t size = 0;  // bytes that must arrive: the extent clipped at the end of the file
  std::uint64_t done = 0;
  int idle = 0;     // attempts in a row without progress
  std::string why;  // reason of failure
  Fault fault;      // of the running attempt
};

class FileReader {
 public:
  FileReader(const FileSet& files, FaultPlan faults) : files_(files), faults_(std::move(faults)) {}

  struct Attempt {
    int fd;
    std::byte* to;
    std::uint64_t offset;
    std::uint32_t bytes;
  };
  enum class Next { attempt, landed, failed };

  // Checks the file; `failed` leaves the reason in read.why.
  Next begin(FileRead& read) const;
  // What to ask of the kernel now.
  Attempt attempt(FileRead& read) const;
  // Takes what the kernel answered: bytes read, or -errno.
  Next take(FileRead& read, std::int64_t result) const;

 private:
  Next fail(FileRead& read, const std::string& why) const;

  const FileSet& files_;
  FaultPlan faults_;
  mutable std::atomic<std::uint64_t> attempts_{0};
};

}  // namespace prophet
