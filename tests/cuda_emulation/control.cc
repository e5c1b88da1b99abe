#include "control.h"

#include <string>

#include "launch.h"
#include "memory.h"
#include "runtime.h"
#include "settings.h"

namespace prophet {
namespace {

std::uint64_t live(const char* name) {
  const std::string what = name;
  if (what == "device") return emulation::live_device_allocations();
  if (what == "pinned") return emulation::live_pinned_ranges();
  if (what == "stream") return emulation::streams().count();
  if (what == "event") return emulation::events().count();
  if (what == "graph") return emulation::graphs().count();
  return ~std::uint64_t{0};
}

constexpr EmulationControl kTable = {
    .version = 1,
    .size = sizeof(EmulationControl),
    .set = [](const char* name, const char* value) -> int { return emulation::set(name, value); },
    .lose_device = [](int code) { emulation::lose_device(static_cast<cudaError_t>(code)); },
    .revive = emulation::revive,
    .calls = [](const char* name) { return emulation::calls(name); },
    .live = live,
    .reachable = [](const void* address, std::uint64_t bytes) -> int {
      return emulation::reachable(address, bytes);
    },
};

}  // namespace
}  // namespace prophet

extern "C" __attribute__((visibility("default"))) const prophet::EmulationControl*
prophet_emulation() {
  return &prophet::kTable;
}
