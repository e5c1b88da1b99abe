#include "device/cpu/lanes.h"

#include "core/error.h"

namespace prophet {
namespace {

constexpr int kDeepest = 1024;

}  // namespace

int checked_depth(int depth) {
  if (depth >= 1 && depth <= kDeepest) return depth;
  throw InvalidArgument("depth is 1 to " + std::to_string(kDeepest) + " reads in flight, not " +
                        std::to_string(depth));
}

std::unique_ptr<Lanes> make_lanes(LaneQueue& queue, const FileReader& reader,
                                  const CpuOptions& options, std::string& note) {
  if (options.io != IoKind::pread) {
    std::string why_not;
    if (auto lanes = make_uring_lanes(queue, reader, options.depth, why_not)) return lanes;
    if (options.io == IoKind::uring) {
      throw InvalidArgument("io_uring cannot be had here (" + why_not +
                            "): use io=auto or io=pread");
    }
    note = " (no io_uring: " + why_not + ")";
  }
  return make_pread_lanes(queue, reader, options.depth);
}

}  // namespace prophet
