#include "device/cuda/host_pool.h"

#include <sys/resource.h>

#include <algorithm>

#include "core/error.h"
#include "device/cuda/cuda_library.h"

namespace prophet {
namespace {

std::string memlock_limit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return "";
  return " (the limit of locked memory, ulimit -l, is " + std::to_string(limit.rlim_cur >> 10) +
         " KiB)";
}

}  // namespace

HostPool::HostPool(const CudaApi& api, const HostPoolOptions& options, std::uint64_t least)
    : api_(api), options_(options) {
  const std::uint64_t asked = options.bytes / options.block_bytes;
  std::uint64_t piece = std::max<std::uint64_t>(1, options.piece_bytes / options.block_bytes);
  while (blocks_.size() < asked && piece > 0) {
    const std::uint64_t blocks = std::min(asked - blocks_.size(), piece);
    const std::uint64_t bytes = blocks * options.block_bytes;
    void* memory = nullptr;
    if (const int code = api.pin(bytes, &memory); code != kCudaSuccess) {
      note_ = cuda_sentence(api, code,
                            "page-locking " + std::to_string(bytes) + " bytes after " +
                                std::to_string(capacity()) + memlock_limit());
      piece = blocks / 2;
      continue;
    }
    pieces_.push_back(memory);
    for (std::uint64_t i = 0; i < blocks; ++i) {
      blocks_.emplace_back().memory = static_cast<std::byte*>(memory) + i * options.block_bytes;
    }
  }
  if (blocks_.size() == asked) note_.clear();
  if (blocks_.size() < std::min(asked, least)) {
    release_all();
    throw DeviceError("Experts pass through page-locked memory of the host, at least " +
                      std::to_string(least * options.block_bytes) + " bytes: " + note_ +
                      " Raise the limit (ulimit -l unlimited) or free memory.");
  }
  for (Block& block : blocks_) block.place = free_.insert(free_.end(), &block);
}

HostPool::~HostPool() { release_all(); }

void HostPool::release_all() {
  for (void* piece : pieces_) api_.unpin(piece);
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
  touch(block);
}

void HostPool::touch(Block& block) { used_.splice(used_.end(), used_, block.place); }

void HostPool::unuse(Block& block) { --block.users; }

}  // namespace prophet
