#include "predict/tensor_checks.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>

namespace prophet {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;

}  // namespace

void FreeHalves::operator()(std::uint16_t* memory) const { std::free(memory); }

HalfMemory make_halves(std::size_t count) {
  const std::size_t unit = 2 * count >= kHugePage ? kHugePage : 64;
  const std::size_t bytes = std::max((2 * count + unit - 1) / unit * unit, unit);
  HalfMemory memory(static_cast<std::uint16_t*>(std::aligned_alloc(unit, bytes)));
  if (!memory) throw std::bad_alloc();
  if (unit == kHugePage) madvise(memory.get(), bytes, MADV_HUGEPAGE);  // a wish
  std::memset(memory.get(), 0, bytes);
  return memory;
}

}  // namespace prophet
