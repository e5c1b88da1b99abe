// While a lease lives, its experts stay where they are.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/types.h"
#include "device/backend.h"

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
    std::string error;  // of a failed entry
  };
  std::vector<Entry> entries;
  std::vector<std::uint64_t> tickets;  // scratch of whoever waits
  bool live = false;
};

// Throws for an entry that failed: ReadError, or DeviceError where the device is lost.
[[noreturn]] inline void throw_failure(const Lease::Entry& entry, const Backend& backend) {
  if (!backend.failure().empty()) throw DeviceError(entry.error);
  throw ReadError(entry.error);
}

}  // namespace prophet
