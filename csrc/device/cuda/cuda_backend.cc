#include "device/cuda/cuda_backend.h"

#include <optional>
#include <string>

#include "core/error.h"
#include "device/copy_check.h"
#include "device/cpu/lanes.h"
#include "device/cuda/cuda_copies.h"
#include "device/cuda/cuda_handles.h"

namespace prophet {
namespace {

constexpr std::size_t kPage = 4096;

std::string mib(std::uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const CudaOptions& options)
      : options_(options),
        api_(*options.api),
        reader_(files_, options.disk.faults),
        queue_(checked_depth(options.disk.depth),
               [this](const FileRead& read) { copies_->read(read); }) {
    const std::string device = "CUDA device " + std::to_string(options.device);
    cuda_check(api_, api_.device_info(options.device, &info_), "asking about " + device);
    cuda_check(api_, info_.usable, "preparing " + device);
    check_memory();
    copies_.emplace(api_, options.device,
                    HostPoolOptions{options.pool_bytes, options.piece_bytes, options.block_bytes},
                    queue_, [this] { lanes_->wake(); });
    lanes_ = make_lanes(queue_, reader_, options.disk, note_);
  }

  ~CudaBackend() override {
    copies_->stop();
    queue_.stop();
    lanes_.reset();
    copies_.reset();
  }

  std::string name() const override { return "cuda"; }
  std::string description() const override {
    const HostPool& pool = copies_->pool();
    std::string text = std::string(info_.name) + (info_.emulated ? " (emulated)" : "") +
                       ", host pool of " + mib(pool.capacity());
    if (!pool.note().empty()) {
      text += " (" + mib(options_.pool_bytes) + " were asked for: " + pool.note() + ")";
    }
    return text + ", " + lanes_->description() + note_ + ", " + files_.description() + ", depth " +
           std::to_string(options_.disk.depth);
  }
  bool host_visible() const override { return false; }
  std::string failure() const override { return copies_->failure(); }

  std::span<std::byte> fast_memory(std::size_t bytes) override {
    if (!memory_.empty())
      throw StateError("fast memory was already taken; a backend gives it once");
    if (bytes == 0) throw InvalidArgument("an arena of 0 bytes holds no expert");
    void* start = options_.memory;
    std::size_t have = options_.memory_bytes;
    if (start == nullptr) {
      have = bytes + kPage;
      allocate(have, &start);
    }
    const auto at = reinterpret_cast<std::uintptr_t>(start);
    const std::size_t skip = (kPage - at % kPage) % kPage;
    if (skip > have || have - skip < bytes) {
      throw InvalidArgument("experts need " + std::to_string(bytes) + " bytes of device memory " +
                            "beginning on a page, and " + std::to_string(have) +
                            " were handed over: ask for fewer slots or hand over more");
    }
    memory_ = {static_cast<std::byte*>(start) + skip, bytes};
    return memory_;
  }

  std::vector<FileInfo> open(const std::vector<std::string>& paths) override {
    return files_.open(paths, options_.disk.direct);
  }
  std::size_t alignment() const override { return files_.alignment(); }

  Ticket copy(Lane lane, std::byte* to, const Extent& from) override {
    check_chunk(from, to, files_.size(), files_.alignment());
    check_inside(memory_, to, from.bytes);
    return copies_->copy(lane, to, from);
  }
  Ticket stage(const Extent& from) override {
    check_chunk(from, nullptr, files_.size(), files_.alignment());
    return copies_->copy(Lane::prefetch, nullptr, from);
  }
  bool has_staging() const override { return true; }
  StagingStats staging() const override { return copies_->staging(); }

  bool poll(Ticket ticket) override { return copies_->poll(ticket); }
  void wait_any(std::span<const Ticket> tickets) override { copies_->wait_any(tickets); }
  void wait(Ticket ticket) override { copies_->wait(ticket); }
  Ticket mark(Stream compute) override { return copies_->mark(compute); }
  void after(Lane lane, Ticket ticket) override { copies_->after(lane, ticket); }
  void after(Stream compute, Ticket ticket) override { copies_->after(compute, ticket); }
  Nanos now() const override { return LaneQueue::now(); }
  LaneStats stats(Lane lane) const override { return copies_->stats(lane); }
  Nanos busy() const override { return copies_->busy(); }

 private:
  // What was handed over must be memory of this device, or kernels and copies would fault.
  void check_memory() const {
    if (options_.memory == nullptr) return;
    CudaMemory kind{};
    int owner = -1;
    cuda_check(api_, api_.memory_kind(options_.memory, &kind, &owner),
               "asking whose memory was handed over for experts");
    if (kind == CudaMemory::device && owner == options_.device) return;
    throw InvalidArgument(
        kind == CudaMemory::device
            ? "memory of CUDA device " + std::to_string(owner) +
                  " was handed over for experts of " + "device " + std::to_string(options_.device) +
                  ": allocate it there"
            : "what was handed over for experts is not device memory: allocate it on CUDA device " +
                  std::to_string(options_.device));
  }

  void allocate(std::size_t bytes, void** memory) {
    on_device(api_, options_.device, [&] {
      std::size_t free = 0, total = 0;
      const std::string has = api_.memory_info(&free, &total) == kCudaSuccess
                                  ? " (" + mib(free) + " of " + mib(total) + " are free)"
                                  : "";
      cuda_check(api_, api_.allocate(bytes, memory),
                 "allocating " + mib(bytes) + " of device memory for experts" + has);
    });
    owned_ = CudaHandle(*memory, CudaDestroy{api_.release});
  }

  const CudaOptions options_;
  const CudaApi& api_;
  CudaDeviceInfo info_{};
  CudaHandle owned_;             // the allocation, where it is ours
  std::span<std::byte> memory_;  // of the device
  FileSet files_;
  FileReader reader_;
  LaneQueue queue_;
  std::optional<CudaCopies> copies_;
  std::string note_;  // why io_uring was not to be had
  std::unique_ptr<Lanes> lanes_;
};

void check(const CudaOptions& options) {
  if (options.api == nullptr) {
    throw InvalidArgument("a cuda backend needs the table of a CUDA library");
  }
  const std::uint64_t block = options.block_bytes;
  if (block == 0 || block % kPage != 0) {
    throw InvalidArgument("blocks of the host pool are a multiple of 4096 bytes, not " +
                          std::to_string(block));
  }
  if (options.pool_bytes / block < kLeastBlocks || options.piece_bytes < block) {
    throw InvalidArgument(
        "a host pool has at least " + std::to_string(kLeastBlocks) +
        " blocks and pieces of at least one: " + std::to_string(options.pool_bytes) +
        " bytes in pieces of " + std::to_string(options.piece_bytes) +
        " are too few for blocks of " + std::to_string(block));
  }
}

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options) {
  check(options);
  return std::make_unique<CudaBackend>(options);
}

}  // namespace prophet
