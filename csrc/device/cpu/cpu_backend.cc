#include "device/cpu/cpu_backend.h"

#include <optional>

#include "core/error.h"
#include "device/copy_check.h"
#include "device/cpu/arena.h"
#include "device/cpu/lanes.h"

namespace prophet {
namespace {

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const CpuOptions& options)
      : direct_(options.direct),
        depth_(checked_depth(options.depth)),
        reader_(files_, options.faults),
        queue_(options.depth),
        lanes_(make_lanes(queue_, reader_, options, note_)) {}

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
    return files_.open(paths, direct_);
  }

  std::size_t alignment() const override { return files_.alignment(); }

  Ticket copy(Lane lane, std::byte* to, const Extent& from) override {
    check_chunk(from, to, files_.size(), files_.alignment());
    check_inside(arena_ ? arena_->bytes() : std::span<std::byte>(), to, from.bytes);
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
  return std::make_unique<CpuBackend>(options);
}

}  // namespace prophet
