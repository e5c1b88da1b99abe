#include "device/cuda/host_pool.h"

#include <sys/resource.h>

#include <algorithm>
#include <cstdlib>

#include "core/error.h"
#include "device/cuda/cuda_library.h"

namespace prophet {
namespace {

constexpr std::size_t kPage = 4096;

std::string memlock_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return "";
  return " (the limit of locked memory, ulimit -l, is " + std::to_string(limit.rlim_cur >> 10) +
         " KiB)";
}

}  // namespace

HostPool::HostPool(const CudaApi& api, const HostPoolOptions& options)
    : api_(api), options_(options) {
  std::uint64_t left = options.bytes / options.block_bytes;
  const std::uint64_t most = std::max<std::uint64_t>(1, options.piece_bytes / options.block_bytes);
  try {
    while (left > 0) {
      const std::uint64_t blocks = std::min(left, most), bytes = blocks * options.block_bytes;
      void* memory = nullptr;
      bool pinned = note_.empty() && bytes <= options.pinned_bytes - pinned_;
      if (pinned) {
        const int code = api.pin(bytes, &memory);
        if (code != kCudaSuccess) {
          pinned = false;
          note_ = cuda_sentence(api, code,
                                "page-locking " + std::to_string(bytes) + " bytes after " +
                                    std::to_string(pinned_) + memlock_limit());
        }
      } else if (note_.empty()) {
        note_ =
            "page-locked memory is limited to " + std::to_string(options.pinned_bytes) + " bytes";
      }
      if (!pinned) memory = std::aligned_alloc(kPage, bytes);
      if (memory == nullptr) {
        throw DeviceError("cannot have " + std::to_string(options.bytes) +
                          " bytes of host memory to stage experts in: ask for a smaller pool");
      }
      pieces_.push_back({static_cast<std::byte*>(memory), pinned});
      if (pinned) pinned_ += bytes;
      for (std::uint64_t i = 0; i < blocks; ++i) {
        blocks_.emplace_back().memory = pieces_.back().memory + i * options.block_bytes;
      }
      left -= blocks;
    }
  } catch (...) {
    release_all();
    throw;
  }
  for (Block& block : blocks_) block.place = free_.insert(free_.end(), &block);
}

HostPool::~HostPool() { release_all(); }

void HostPool::release_all() {
  for (const Piece& piece : pieces_) {
    if (piece.pinned) {
      api_.unpin(piece.memory);
    } else {
      std::free(piece.memory);
    }
  }
}

HostPool::Block* HostPool::find(const Extent& run) {
  const auto at = by_key_.find({run.file, run.offset});
  return at == by_key_.end() || at->second->asked != run.bytes ? nullptr : at->second;
}

void HostPool::empty(Block& block) {
  by_key_.erase({block.file, block.offset});
  if (block.state == Block::State::ready) {
    held_ -= block.held;
    dropped_ += block.held;
  }
  block.state = Block::State::free;
  free_.splice(free_.begin(), used_, block.place);  // its pages are warm
}

HostPool::Block* HostPool::take(const Extent& run) {
  const auto idle = [](const Block& block) {
    return block.state == Block::State::ready && block.users == 0;
  };
  const auto other = by_key_.find({run.file, run.offset});
  if (other != by_key_.end()) {
    if (!idle(*other->second)) return nullptr;
    empty(*other->second);
  }
  if (free_.empty()) {
    const auto victim =
        std::find_if(used_.begin(), used_.end(), [&](const Block* each) { return idle(*each); });
    if (victim == used_.end()) return nullptr;
    empty(**victim);
  }
  Block& block = *free_.front();
  used_.splice(used_.end(), free_, block.place);
  block.state = Block::State::filling;
  block.file = run.file;
  block.offset = run.offset;
  block.asked = run.bytes;
  block.held = 0;
  by_key_[{run.file, run.offset}] = &block;
  return &block;
}

void HostPool::filled(Block& block, std::uint64_t held) {
  block.state = Block::State::ready;
  block.held = held;
  held_ += held;
}

void HostPool::drop(Block& block) { empty(block); }

void HostPool::use(Block& block) {
  ++block.users;
  used_.splice(used_.end(), used_, block.place);
}

void HostPool::unuse(Block& block) { --block.users; }

}  // namespace prophet
