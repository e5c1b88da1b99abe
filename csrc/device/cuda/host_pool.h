// Host memory that holds blocks of files on their way to a device, and those that may be wanted
// again: the staging tier.
//
//            take             filled              use / unuse
//   free ──────────▶ filling ──────▶ ready (idle) ◀────────▶ ready (in use)
//     ▲                 │ drop          │ take: its room is needed, the one used longest ago first
//     └─────────────────┴───────────────┘
//
// All of it is page-locked, in pieces of one call each, at once and for as long as the pool lives.
// Where the driver refuses more (the limit on locked memory, or no memory), smaller pieces are
// tried down to a block, and the pool is as large as what could be had; `note` says why.
//
// Not thread-safe: the owner holds a lock. Made and destroyed on a thread that uses the device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <string>
#include <vector>

#include "core/types.h"
#include "device/cuda/cuda_api.h"

namespace prophet {

struct HostPoolOptions {
  std::uint64_t bytes = 0, piece_bytes = 0, block_bytes = 0;
};

class HostPool {
 public:
  // Throws DeviceError when fewer than `least` blocks can be had.
  HostPool(const CudaApi& api, const HostPoolOptions& options, std::uint64_t least = 1);
  ~HostPool();
  HostPool(const HostPool&) = delete;
  HostPool& operator=(const HostPool&) = delete;

  struct Block {
    enum class State : std::uint8_t { free, filling, ready };
    std::byte* memory = nullptr;
    State state = State::free;
    std::int32_t file = -1;
    std::uint64_t offset = 0, asked = 0;  // the run of the file it is for ...
    std::uint64_t held = 0;               // ... and how many bytes of it the file has
    int users = 0;
    std::list<Block*>::iterator place;  // in the order of use, or among the free
  };

  // The block for this run, whatever its state; null when there is none, or one for another length.
  Block* find(const Extent& run);
  // A block to fill with the run, in use by nobody; null when all are filling or in use. What the
  // pool holds from the same offset on with another length is given up, or waited for (null).
  Block* take(const Extent& run);
  void filled(Block& block, std::uint64_t held);
  void drop(Block& block);  // it could not be filled, and nobody uses it
  void use(Block& block);   // a ready one is now the one used last
  void unuse(Block& block);
  void touch(Block& block);  // as if it had been used now

  std::uint64_t block_bytes() const { return options_.block_bytes; }
  std::uint64_t capacity() const { return blocks_.size() * options_.block_bytes; }
  std::uint64_t held() const { return held_; }        // bytes of ready blocks
  std::uint64_t dropped() const { return dropped_; }  // bytes that made room, in all
  const std::string& note() const { return note_; }   // why it is smaller than asked

 private:
  using Key = std::pair<std::int32_t, std::uint64_t>;
  void release_all();
  void empty(Block& block);

  const CudaApi& api_;
  const HostPoolOptions options_;
  std::vector<void*> pieces_;
  std::vector<Block> blocks_;
  std::map<Key, Block*> by_key_;  // not free
  std::list<Block*> free_;
  std::list<Block*> used_;  // not free, the one used longest ago first
  std::uint64_t held_ = 0, dropped_ = 0;
  std::string note_;
};

}  // namespace prophet
