#include "device/cpu/cpu_backend.h"

#include <optional>

#include "core/error.h"
#include "device/cpu/arena.h"
#include "device/cpu/lanes.h"

namespace prophet {
namespace {

constexpr int kDeepest = 1024;

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const CpuOptions& options)
      : direct_(options.direct),
        depth_(options.depth),
        reader_(files_, options.faults),
        queue_(options.depth) {
    if (options.io != IoKind::pread) {
      std::string why_not;
      lanes_ = make_uring_lanes(queue_, reader_, depth_, why_not);
      if (lanes_) return;
      if (options.io == IoKind::uring) {
        throw InvalidArgument("io_uring cannot be had here (" + why_not +
                              "): use io=auto or io=pread");
      }
      note_ = " (no io_uring: " + why_not + ")";
    }
    lanes_ = make_pread_lanes(queue_, reader_, depth_);
  }

  ~CpuBackend() override {
    queue_.stop();
    lanes_.reset();
  }

  std::string name() const override { return "cpu"; }
  std::string description() const override {
    return lanes_->description() + note_ + ", " + files_.description() + ", depth " +
           std::to_string(depth_);
  }

  std::span<std::byte> fast_memory(std::size_t bytes) override {
    if (arena_) throw StateError("fast memory was already taken; a backend gives it once");
    arena_.emplace(bytes);
    return arena_->bytes();
  }

  std::vector<FileInfo> open(const std::vector<std::string>& paths) override {
    files_.open(paths, direct_);
    std::vector<FileInfo> infos;
    for (std::size_t i = 0; i < paths.size(); ++i) {
      infos.push_back(files_[static_cast<std::int32_t>(i)].info);
    }
    return infos;
  }

  std::size_t alignment() const override { return files_.alignment(); }

  Ticket copy(Lane lane, std::byte* to, const Extent& from) override {
    check(to, from);
    const Ticket ticket = queue_.push(lane, to, from);
    lanes_->wake();
    return ticket;
  }

  bool poll(Ticket ticket) override { return queue_.poll(ticket); }
  void wait_any(std::span<const Ticket> tickets) override { queue_.wait_any(tickets); }
  void wait(Ticket ticket) override { queue_.wait(ticket); }
  Ticket mark(Stream) override { return 0; }
  void after(Lane lane, Ticket ticket) override { queue_.after(lane, ticket); }
  void after(Stream, Ticket ticket) override { queue_.wait(ticket); }
  Nanos now() const override { return LaneQueue::now(); }
  LaneStats stats(Lane lane) const override { return queue_.stats(lane); }
  Nanos busy() const override { return queue_.busy(); }

 private:
  // A wrong copy would write over memory that is not ours or be refused by the kernel later.
  void check(const std::byte* to, const Extent& from) const {
    if (from.file < 0 || static_cast<std::size_t>(from.file) >= files_.size()) {
      throw InvalidArgument("file number " + std::to_string(from.file) + " of " +
                            std::to_string(files_.size()) + " was not opened");
    }
    const std::uint64_t unit = files_.alignment();
    if (from.bytes == 0 || from.bytes % unit != 0 || from.offset % unit != 0 ||
        reinterpret_cast<std::uintptr_t>(to) % unit != 0) {
      throw InvalidArgument("a copy of " + std::to_string(from.bytes) + " bytes at offset " +
                            std::to_string(from.offset) + " is empty or not in units of " +
                            std::to_string(unit) + " bytes, address included");
    }
    const auto arena = arena_ ? arena_->bytes() : std::span<std::byte>();
    const auto at = reinterpret_cast<std::uintptr_t>(to);
    const auto base = reinterpret_cast<std::uintptr_t>(arena.data());
    if (at < base || at - base > arena.size() || from.bytes > arena.size() - (at - base)) {
      throw InvalidArgument("a copy of " + std::to_string(from.bytes) +
                            " bytes would leave the fast memory of its backend");
    }
  }

  const bool direct_;
  const int depth_;
  std::string note_;  // why io_uring was not to be had
  std::optional<Arena> arena_;
  FileSet files_;
  FileReader reader_;
  LaneQueue queue_;
  std::unique_ptr<Lanes> lanes_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options) {
  if (options.depth < 1 || options.depth > kDeepest) {
    throw InvalidArgument("depth is 1 to " + std::to_string(kDeepest) + " reads in flight, not " +
                          std::to_string(options.depth));
  }
  return std::make_unique<CpuBackend>(options);
}

}  // namespace prophet
