#include "kernels/kernel_set.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "core/error.h"
#include "kernels/expert_ffn.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace prophet {
namespace {

#if defined(__x86_64__)
// Asked by hand: not every compiler's __builtin_cpu_supports knows it.
bool has_f16c() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
#endif

// Every set the project has, best first.
std::vector<const KernelSet*> known_sets() {
  return {
#if defined(__x86_64__)
    &kAvx512Kernels, &kAvx2Kernels,
#endif
        &kPortableKernels,
  };
}

bool runs_here([[maybe_unused]] const KernelSet* set) {
#if defined(__x86_64__)
  if (set == &kAvx512Kernels) return has_avx512();
  if (set == &kAvx2Kernels) return has_avx2();
#endif
  return true;
}

// The best set that runs here and is not above `ceiling` (null: no ceiling).
const KernelSet* best_up_to(const char* ceiling) {
  bool below = ceiling == nullptr;
  for (const KernelSet* set : known_sets()) {
    below = below || std::strcmp(set->name, ceiling) == 0;
    if (below && runs_here(set)) return set;
  }
  return nullptr;
}

const KernelSet* first_choice() {
  const char* ceiling = std::getenv("PROPHET_ISA");
  if (ceiling == nullptr || *ceiling == '\0') return best_up_to(nullptr);
  const std::string name = ceiling;
  if (name != "avx512" && name != "avx2" && name != "portable") {
    throw InvalidArgument("PROPHET_ISA is '" + name +
                          "'; set it to avx512, avx2 or portable, or leave it unset");
  }
  // A name of another architecture's set is above anything here: no ceiling.
  const KernelSet* set = best_up_to(ceiling);
  return set != nullptr ? set : best_up_to(nullptr);
}

std::atomic<const KernelSet*>& chosen() {
  static std::atomic<const KernelSet*> set{first_choice()};
  return set;
}

}  // namespace

const KernelSet& kernel_set() { return *chosen().load(std::memory_order_acquire); }

std::string_view kernel_isa() { return kernel_set().name; }

std::vector<std::string> kernel_isas() {
  std::vector<std::string> names;
  for (const KernelSet* set : known_sets()) {
    if (runs_here(set)) names.emplace_back(set->name);
  }
  return names;
}

void set_kernel_isa(std::string_view isa) {
  std::string here;
  for (const KernelSet* set : known_sets()) {
    if (!runs_here(set)) continue;
    if (isa == set->name) {
      chosen().store(set, std::memory_order_release);
      return;
    }
    here += (here.empty() ? "" : ", ") + std::string(set->name);
  }
  throw InvalidArgument("this machine has no kernels for instruction set '" + std::string(isa) +
                        "'; choose one of: " + here);
}

}  // namespace prophet
