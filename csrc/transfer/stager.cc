#include "transfer/stager.h"

#include <algorithm>

#include "core/error.h"

namespace prophet {

Stager::Stager(const WeightStore& store, Backend& backend, std::uint64_t chunk_bytes, int chunks)
    : store_(store),
      backend_(backend),
      chunk_bytes_(chunk_bytes),
      most_(static_cast<std::size_t>(std::max(1, chunks))) {}

void Stager::want(std::span<const Prefetch> wanted) {
  wishes_.clear();
  if (!backend_.has_staging()) return;
  const auto wished = [&](ExpertKey key) {
    return std::any_of(wanted.begin(), wanted.end(),
                       [&](const Prefetch& wish) { return wish.key == key; });
  };
  std::erase_if(over_, [&](ExpertKey key) { return !wished(key); });
  for (Transfer& transfer : moving_) transfer.cancelled = !wished(transfer.key);
  for (const Prefetch& wish : wanted) {
    const auto same = [&](ExpertKey key) { return key == wish.key; };
    const bool known = std::any_of(over_.begin(), over_.end(), same) ||
                       std::any_of(wishes_.begin(), wishes_.end(), same) ||
                       std::any_of(moving_.begin(), moving_.end(),
                                   [&](const Transfer& each) { return each.key == wish.key; });
    if (!known) wishes_.push_back(wish.key);
  }
  std::reverse(wishes_.begin(), wishes_.end());
}

void Stager::forget(ExpertKey key) {
  std::erase(wishes_, key);
  for (Transfer& transfer : moving_) {
    if (transfer.key == key) transfer.cancelled = true;
  }
}

bool Stager::start_chunk(Transfer& transfer) {
  const auto extents = store_.where(transfer.key);
  if (transfer.cancelled || transfer.extent == extents.size()) return false;
  const Extent& extent = extents[transfer.extent];
  Extent chunk = extent;
  chunk.offset += transfer.done;
  chunk.bytes = std::min(chunk_bytes_, extent.bytes - transfer.done);
  transfer.chunks.push_back(backend_.stage(chunk));
  transfer.done += chunk.bytes;
  if (transfer.done == extent.bytes) {
    ++transfer.extent;
    transfer.done = 0;
  }
  return true;
}

std::size_t Stager::in_flight() const {
  std::size_t count = 0;
  for (const Transfer& transfer : moving_) count += transfer.chunks.size();
  return count;
}

void Stager::start() {
  std::size_t free = most_ - std::min(most_, in_flight());
  for (Transfer& transfer : moving_) {
    while (free > 0 && start_chunk(transfer)) --free;
  }
  while (free > 0 && !wishes_.empty()) {
    moving_.push_back({wishes_.back(), false, 0, 0, {}});
    wishes_.pop_back();
    while (free > 0 && start_chunk(moving_.back())) --free;
  }
}

void Stager::collect() {
  for (Transfer& transfer : moving_) {
    std::erase_if(transfer.chunks, [&](Ticket chunk) {
      try {
        return backend_.poll(chunk);
      } catch (const ReadError&) {
      } catch (const DeviceError&) {
      }
      transfer.extent = store_.where(transfer.key).size();  // nothing is left to do
      return true;
    });
  }
  std::erase_if(moving_, [&](const Transfer& transfer) {
    const bool all = transfer.extent == store_.where(transfer.key).size();
    if (!transfer.chunks.empty() || !(all || transfer.cancelled)) return false;
    if (all) over_.push_back(transfer.key);
    return true;
  });
}

void Stager::tickets(std::vector<Ticket>& out) const {
  for (const Transfer& transfer : moving_) {
    out.insert(out.end(), transfer.chunks.begin(), transfer.chunks.end());
  }
}

}  // namespace prophet
