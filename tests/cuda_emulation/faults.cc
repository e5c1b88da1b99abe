#include "faults.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <map>
#include <mutex>
#include <sstream>

#include "ordering.h"
#include "settings.h"

namespace prophet::emulation {
namespace {

// After these a real context is dead as well.
constexpr cudaError_t kSticky[] = {
    cudaErrorECCUncorrectable,   cudaErrorIllegalAddress,
    cudaErrorLaunchTimeout,      cudaErrorAssert,
    cudaErrorHardwareStackError, cudaErrorIllegalInstruction,
    cudaErrorMisalignedAddress,  cudaErrorInvalidPc,
    cudaErrorLaunchFailure,      cudaErrorUnknown,
};

struct Calls {
  std::mutex mutex;
  std::map<std::string, std::uint64_t> by_name;
  std::uint64_t all = 0;
};

Calls& made() {
  static auto* kept = new Calls;
  return *kept;
}

std::atomic<int> lost{0};
thread_local cudaError_t last = cudaSuccess;

// The code that the n-th call of a name, the m-th of all, must return.
int injected(const std::string& call, std::uint64_t nth, std::uint64_t mth) {
  const std::string rules = settings().fail;
  if (rules.empty()) return 0;
  std::istringstream each(rules);
  for (std::string rule; std::getline(each, rule, ',');) {
    char name[64] = {};
    unsigned long long at = 0;
    int code = 0;
    if (std::sscanf(rule.c_str(), "%63[^:]:%llu=%d", name, &at, &code) != 3) continue;
    const std::string asked = name;
    const std::uint64_t count = asked == "*" ? mth : nth;
    if ((asked == "*" || asked == call) && (at == 0 || at == count)) return code;
  }
  return 0;
}

}  // namespace

cudaError_t enter(const char* call) {
  std::uint64_t nth = 0, mth = 0;
  {
    const Unordered hidden;
    const std::scoped_lock lock(made().mutex);
    nth = ++made().by_name[call];
    mth = ++made().all;
  }
  if (const int code = lost.load()) return leave(static_cast<cudaError_t>(code));
  const auto code = static_cast<cudaError_t>(injected(call, nth, mth));
  if (std::find(std::begin(kSticky), std::end(kSticky), code) != std::end(kSticky))
    lose_device(code);
  return leave(code);
}

cudaError_t leave(cudaError_t error) {
  if (error != cudaSuccess) last = error;
  return error;
}

cudaError_t last_error(bool forget) {
  if (const int code = lost.load()) return static_cast<cudaError_t>(code);
  const cudaError_t error = last;
  if (forget) last = cudaSuccess;
  return error;
}

void lose_device(cudaError_t code) { lost.store(code); }
bool device_lost() { return lost.load() != 0; }

std::uint64_t calls(const std::string& name) {
  const Unordered hidden;
  const std::scoped_lock lock(made().mutex);
  if (name.empty()) return made().all;
  const auto found = made().by_name.find(name);
  return found == made().by_name.end() ? 0 : found->second;
}

void revive() {
  const Unordered hidden;
  const std::scoped_lock lock(made().mutex);
  made().by_name.clear();
  made().all = 0;
  lost.store(0);
  last = cudaSuccess;
}

}  // namespace prophet::emulation
