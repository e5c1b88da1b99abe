// While a lease lives, its experts stay where they are.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/types.h"

namespace prophet {

// Filled by Engine::lease, ended by Engine::release; reusable. Its owner keeps it at one address
// and releases it before it goes.
struct Lease {
  enum class Status : std::uint8_t { waiting, held, failed };
  struct Entry {
    ExpertKey key;
    Status status = Status::waiting;
    bool hit = false;     // resident when it was asked for
    bool coming = false;  // on its way when it was asked for
    std::int32_t slot = -1;
    std::string error;    // of a failed entry
    bool device = false;  // ... which the device failed
  };
  std::vector<Entry> entries;
  std::vector<std::uint64_t> tickets;  // scratch of whoever waits
  bool live = false;
};

// Throws for an entry that failed: DeviceError where the device failed it, else ReadError.
[[noreturn]] inline void throw_failure(const Lease::Entry& entry) {
  if (entry.device) throw DeviceError(entry.error);
  throw ReadError(entry.error);
}

}  // namespace prophet
