#include "device/cpu/arena.h"

#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>

#include "core/error.h"

namespace prophet {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr int kNiceness = 5;  // behind the layers; not last, since who maps memory waits for it
#ifdef MADV_POPULATE_WRITE
constexpr int kPopulate = MADV_POPULATE_WRITE;
#else
constexpr int kPopulate = 23;  // older headers than the system
#endif

}  // namespace

Arena::Arena(std::size_t bytes) {
  if (bytes == 0) throw InvalidArgument("an arena of 0 bytes holds no expert");
  const auto refuse = [&](int error) {
    throw InvalidArgument("cannot reserve an arena of " + std::to_string(bytes) +
                          " bytes: " + std::strerror(error) + "; ask for fewer slots");
  };
  if (bytes > std::size_t{1} << 56) refuse(ENOMEM);
  mapped_ = (bytes + kPage - 1) / kPage * kPage;
  void* map = mmap(nullptr, mapped_ + kHugePage, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (map == MAP_FAILED) refuse(errno);
  // Keep what begins on a huge page; give the ends back.
  auto* begin = static_cast<std::byte*>(map);
  const std::size_t head =
      (kHugePage - reinterpret_cast<std::uintptr_t>(begin) % kHugePage) % kHugePage;
  std::byte* base = begin + head;
  if (head > 0) munmap(begin, head);
  munmap(base + mapped_, kHugePage - head);
  // Advice: where it is refused, small pages serve.
  if (mapped_ >= kHugePage) madvise(base, mapped_ / kHugePage * kHugePage, MADV_HUGEPAGE);
  bytes_ = {base, bytes};
  toucher_ = std::thread([this] { touch(); });
}

Arena::~Arena() {
  stop_ = true;
  wait_touched();
  munmap(bytes_.data(), mapped_);
}

void Arena::wait_touched() {
  if (toucher_.joinable()) toucher_.join();
}

// Populating writes nothing: a page that a read has filled already stays as it is.
void Arena::touch() {
  setpriority(PRIO_PROCESS, 0, kNiceness);  // Linux: of this thread alone
  for (std::size_t at = 0; at < mapped_ && !stop_; at += kHugePage) {
    if (madvise(bytes_.data() + at, std::min(kHugePage, mapped_ - at), kPopulate) != 0) return;
  }
}

}  // namespace prophet
