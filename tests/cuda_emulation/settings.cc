#include "settings.h"

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <mutex>

#include "faults.h"
#include "ordering.h"

namespace prophet::emulation {
namespace {

constexpr const char* kNames[] = {"DEVICES",   "DRIVER", "CAPABILITY", "IMAGE", "MEMORY_MB",
                                  "PINNED_MB", "GBPS",   "LATENCY_US", "SEED",  "FAIL"};

struct Current {
  std::mutex mutex;
  Settings values;
};

bool apply(Settings& to, const std::string& name, const std::string& value) {
  const double number = std::atof(value.c_str());
  const auto megabytes = [&] { return static_cast<std::size_t>(number * (1 << 20)); };
  if (name == "DEVICES") {
    to.devices = static_cast<int>(number);
  } else if (name == "DRIVER") {
    to.driver = static_cast<int>(number);
  } else if (name == "CAPABILITY") {
    to.major = static_cast<int>(number);
    to.minor = static_cast<int>(number * 10 + 0.5) % 10;
  } else if (name == "IMAGE") {
    to.image = number != 0;
  } else if (name == "MEMORY_MB") {
    to.memory = megabytes();
  } else if (name == "PINNED_MB") {
    to.pinned = megabytes();
  } else if (name == "GBPS") {
    to.bytes_per_second = number * 1e9;
  } else if (name == "LATENCY_US") {
    to.latency_seconds = number * 1e-6;
  } else if (name == "SEED") {
    to.seed = std::strtoull(value.c_str(), nullptr, 10);
  } else if (name == "FAIL") {
    to.fail = value;
  } else {
    return false;
  }
  return true;
}

Current& current() {
  static Current* made = [] {
    auto* now = new Current;  // lives as long as its threads: for ever
    now->values.driver = CUDART_VERSION;
    for (const char* name : kNames) {
      const char* value = std::getenv((std::string("PROPHET_EMULATED_") + name).c_str());
      if (value && *value) apply(now->values, name, value);
    }
    return now;
  }();
  return *made;
}

}  // namespace

Settings settings() {
  const Unordered hidden;
  const std::scoped_lock lock(current().mutex);
  return current().values;
}

bool set(const std::string& name, const std::string& value) {
  const Unordered hidden;
  const std::scoped_lock lock(current().mutex);
  return apply(current().values, name, value);
}

}  // namespace prophet::emulation
