#include "device/manual/manual_backend.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "core/error.h"
#include "device/copy_check.h"

namespace prophet {
namespace {

constexpr std::align_val_t kPage{4096};

}  // namespace

void ManualBackend::Unmap::operator()(std::byte* memory) const { operator delete(memory, kPage); }

ManualBackend::ManualBackend(ManualOptions options)
    : options_(std::move(options)), random_(options_.seed) {
  if (!options_.content) {
    options_.content = [](std::int32_t file, std::uint64_t offset, std::span<std::byte> out) {
      for (std::size_t i = 0; i < out.size(); ++i) out[i] = byte_at(file, offset + i);
    };
  }
}

std::byte ManualBackend::byte_at(std::int32_t file, std::uint64_t offset) {
  // A multiplicative hash whose high bits depend on all of (file, offset).
  std::uint64_t x = ((offset + 1) * 0x9E3779B97F4A7C15u) ^ ((std::uint64_t(file) + 1) << 32);
  x ^= x >> 29;
  x *= 0xBF58476D1CE4E5B9u;
  const std::byte byte{static_cast<std::uint8_t>(x >> 56)};
  return byte == kPoison ? std::byte{0} : byte;
}

std::span<std::byte> ManualBackend::fast_memory(std::size_t bytes) {
  Lock lock(mutex_);
  if (memory_) throw StateError("fast memory was already taken; a backend gives it once");
  void* memory = operator new(bytes, kPage, std::nothrow);
  if (memory == nullptr) {
    throw InvalidArgument("cannot reserve " + std::to_string(bytes) + " bytes of fast memory");
  }
  memory_.reset(static_cast<std::byte*>(memory));
  bytes_ = bytes;
  std::memset(memory, static_cast<int>(kPoison), bytes);
  return {memory_.get(), bytes};
}

std::vector<FileInfo> ManualBackend::open(const std::vector<std::string>& paths) {
  Lock lock(mutex_);
  if (files_ > 0) throw StateError("files were already opened; a backend opens them once");
  std::vector<FileInfo> files;
  for (const std::string& path : paths) files.push_back({path, options_.file_bytes, 0});
  files_ = files.size();
  return files;
}

Ticket ManualBackend::copy(Lane lane, std::byte* to, const Extent& from) {
  Lock lock(mutex_);
  check_chunk(from, to, files_, options_.alignment);
  check_inside({memory_.get(), bytes_}, to, from.bytes);
  std::memset(to, static_cast<int>(kPoison), from.bytes);
  const Ticket ticket = tickets_.issue();
  meter_.started(lane, now_);
  auto& behind = behind_[static_cast<std::size_t>(lane)];
  std::erase_if(behind, [&](Ticket each) { return tickets_.settled(each); });
  pending_.push_back({ticket, lane, from, to, behind});
  return ticket;
}

bool ManualBackend::may_start(const Pending& copy) const {
  return std::all_of(copy.behind.begin(), copy.behind.end(),
                     [&](Ticket each) { return tickets_.settled(each); });
}

std::vector<ManualBackend::Pending> ManualBackend::pending() const {
  Lock lock(mutex_);
  return {pending_.begin(), pending_.end()};
}

std::deque<ManualBackend::Pending>::iterator ManualBackend::find(Ticket ticket) {
  const auto at = std::find_if(pending_.begin(), pending_.end(),
                               [&](const Pending& copy) { return copy.ticket == ticket; });
  if (at == pending_.end()) {
    throw StateError("ticket " + std::to_string(ticket) + " is not pending");
  }
  if (!may_start(*at)) {
    throw StateError("ticket " + std::to_string(ticket) +
                     " may not start yet: its lane was told to go after ticket " +
                     std::to_string(at->behind.back()));
  }
  return at;
}

void ManualBackend::land(std::deque<Pending>::iterator copy) {
  const Extent& from = copy->from;
  const std::uint64_t size = options_.file_bytes;
  const std::uint64_t bytes = from.offset < size ? std::min(from.bytes, size - from.offset) : 0;
  if (from.bytes - bytes >= options_.alignment) {
    return fail(copy, "file " + std::to_string(from.file) + " ends at " + std::to_string(size) +
                          ": cannot read " + std::to_string(from.bytes) + " bytes at " +
                          std::to_string(from.offset));
  }
  options_.content(from.file, from.offset, {copy->to, bytes});
  now_ += std::max<Nanos>(1, static_cast<Nanos>(options_.ns_per_byte * double(bytes)));
  meter_.landed(copy->lane, bytes, now_);
  tickets_.land(copy->ticket);
  pending_.erase(copy);
  settled_.notify_all();
}

void ManualBackend::fail(std::deque<Pending>::iterator copy, std::string why) {
  now_ += 1;
  meter_.failed(copy->lane, now_);
  tickets_.fail(copy->ticket, std::move(why));
  pending_.erase(copy);
  settled_.notify_all();
}

void ManualBackend::land(Ticket ticket) {
  Lock lock(mutex_);
  land(find(ticket));
}

void ManualBackend::fail(Ticket ticket, const std::string& why) {
  Lock lock(mutex_);
  fail(find(ticket), why);
}

void ManualBackend::land_all() {
  Lock lock(mutex_);
  // A copy waits only for tickets issued before it, so the oldest may always start.
  while (!pending_.empty()) land(pending_.begin());
}

void ManualBackend::land_one_at_random() {
  if (pending_.empty()) throw StateError("waiting for a copy, but none is pending");
  std::vector<std::size_t> ready;
  for (std::size_t i = 0; i < pending_.size(); ++i) {
    if (may_start(pending_[i])) ready.push_back(i);
  }
  land(pending_.begin() + std::ptrdiff_t(ready[random_() % ready.size()]));
}

void ManualBackend::advance(Nanos time) {
  Lock lock(mutex_);
  now_ += time;
}

bool ManualBackend::poll(Ticket ticket) {
  Lock lock(mutex_);
  return tickets_.landed(ticket);
}

void ManualBackend::wait_any(std::span<const Ticket> tickets) {
  Lock lock(mutex_);
  const auto one_settled = [&] {
    return tickets.empty() || std::any_of(tickets.begin(), tickets.end(),
                                          [&](Ticket each) { return tickets_.settled(each); });
  };
  if (options_.wait == ManualOptions::Wait::block) return settled_.wait(lock, one_settled);
  while (!one_settled()) land_one_at_random();
}

void ManualBackend::wait(Ticket ticket) {
  wait_any({&ticket, 1});
  poll(ticket);
}

void ManualBackend::after(Lane lane, Ticket ticket) {
  Lock lock(mutex_);
  if (!tickets_.settled(ticket)) behind_[static_cast<std::size_t>(lane)].push_back(ticket);
}

void ManualBackend::after(Stream, Ticket ticket) { wait(ticket); }

Nanos ManualBackend::now() const {
  Lock lock(mutex_);
  return now_;
}

LaneStats ManualBackend::stats(Lane lane) const {
  Lock lock(mutex_);
  return meter_.stats(lane, now_);
}

Nanos ManualBackend::busy() const {
  Lock lock(mutex_);
  return meter_.busy(now_);
}

}  // namespace prophet
