#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "ordering.h"
#include "settings.h"

namespace prophet::emulation {
namespace {

constexpr std::size_t kPage = 4096;

std::size_t pages(std::size_t bytes) { return (bytes + kPage - 1) & ~(kPage - 1); }

struct DeviceRange {
  int device;
  std::size_t bytes, mapped;
  char* access;  // equals the address itself where there is one mapping
};

struct PinnedRange {
  int device;
  std::size_t bytes;
  bool ours;  // allocated here, not registered
};

struct Books {
  std::mutex mutex;
  std::map<std::uintptr_t, DeviceRange> device;
  std::map<std::uintptr_t, PinnedRange> pinned;
  std::map<int, std::size_t> used;
  std::size_t pinned_bytes = 0;
  int kernels = 0;
};

Books& books() {
  static auto* kept = new Books;
  return *kept;
}

std::uintptr_t number(const void* address) { return reinterpret_cast<std::uintptr_t>(address); }

// The range that begins at or before the address.
template <class Ranges>
typename Ranges::iterator before(Ranges& ranges, std::uintptr_t address) {
  auto next = ranges.upper_bound(address);
  return next == ranges.begin() ? ranges.end() : --next;
}

// Two mappings of one file, the first between guard pages; null when there is no memory.
char* map_twice(std::size_t bytes, bool open, char** access) {
  const int file = memfd_create("emulated-device", 0);
  if (file < 0) return nullptr;
  char* seen = nullptr;
  if (ftruncate(file, static_cast<off_t>(bytes)) == 0) {
    void* room = mmap(nullptr, bytes + 2 * kPage, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (room != MAP_FAILED) {
      const int rights = PROT_READ | PROT_WRITE;
#ifdef PROPHET_EMULATION_TSAN
      open = true;
#endif
      char* at = static_cast<char*>(room) + kPage;
      void* first = mmap(at, bytes, open ? rights : PROT_NONE, MAP_SHARED | MAP_FIXED, file, 0);
      *access = at;
#ifndef PROPHET_EMULATION_TSAN
      void* second = mmap(nullptr, bytes, rights, MAP_SHARED, file, 0);
      *access = static_cast<char*>(second);
      if (second == MAP_FAILED) first = MAP_FAILED;
#endif
      if (first == MAP_FAILED)
        munmap(room, bytes + 2 * kPage);
      else
        seen = at;
    }
  }
  close(file);
  return seen;
}

void protect_all(Books& all, [[maybe_unused]] int rights) {
#ifndef PROPHET_EMULATION_TSAN
  for (const auto& [address, range] : all.device)
    if (mprotect(reinterpret_cast<void*>(address), range.mapped, rights)) std::abort();
#else
  (void)all;
#endif
}

}  // namespace

cudaError_t allocate_device(int device, std::size_t bytes, void** out) {
  const Settings machine = settings();
  const std::size_t mapped = pages(bytes ? bytes : 1);
  const Unordered hidden;
  const std::scoped_lock lock(books().mutex);
  std::size_t& used = books().used[device];
  if (mapped > machine.memory || used > machine.memory - mapped) return cudaErrorMemoryAllocation;
  char* access = nullptr;
  char* seen = map_twice(mapped, books().kernels > 0, &access);
  if (!seen) return cudaErrorMemoryAllocation;
  std::memset(access, 0xCD, mapped);
  used += mapped;
  books().device[number(seen)] = {device, bytes, mapped, access};
  *out = seen;
  return cudaSuccess;
}

cudaError_t release_device(void* address) {
  const Unordered hidden;
  const std::scoped_lock lock(books().mutex);
  const auto found = books().device.find(number(address));
  if (found == books().device.end()) return cudaErrorInvalidValue;
  const DeviceRange range = found->second;
  books().device.erase(found);
  books().used[range.device] -= range.mapped;
  if (range.access != address) munmap(range.access, range.mapped);
  munmap(static_cast<char*>(address) - kPage, range.mapped + 2 * kPage);
  return cudaSuccess;
}

std::size_t device_memory_used(int device) {
  const Unordered hidden;
  const std::scoped_lock lock(books().mutex);
  return books().used[device];
}

cudaError_t allocate_pinned(int device, std::size_t bytes, void** out) {
  void* made = std::aligned_alloc(kPage, pages(bytes ? bytes : 1));
  if (!made) return cudaErrorMemoryAllocation;
  const cudaError_t error = register_pinned(device, made, bytes ? bytes : 1);
  if (error != cudaSuccess) {
    std::free(made);
    return error;
  }
  const Unordered hidden;
  const std::scoped_lock lock(books().mutex);
  books().pinned[number(made)].ours = true;
  *out = made;
  return cudaSuccess;
}

cudaError_t register_pinned(int device, void* address, std::size_t bytes) {
  if (!address || !bytes) return cudaErrorInvalidValue;
  const Settings machine = settings();
  const Unordered hidden;
  const std::scoped_lock lock(books().mutex);
  const auto near = before(books().pinned, number(address) + bytes - 1);
  if (near != books().pinned.end() && near->first + near->second.bytes > number(address))
    return cudaErrorHostMemoryAlreadyRegistered;
  if (bytes > machine.pinned || books().pinned_bytes > machine.pinned - bytes)
    return cudaErrorMemoryAllocation;
  books().pinned_bytes += bytes;
  books().pinned[number(address)] = {device, bytes, false};
  return cudaSuccess;
}

namespace {

cudaError_t forget_pinned(void* address, bool ours) {
  const Unordered hidden;
  const std::scoped_lock lock(books().mutex);
  const auto found = books().pinned.find(number(address));
  if (found == books().pinned.end() || found->second.ours != ours)
    return ours ? cudaErrorInvalidValue : cudaErrorHostMemoryNotRegistered;
  books().pinned_bytes -= found->second.bytes;
  books().pinned.erase(found);
  return cudaSuccess;
}

}  // namespace

cudaError_t release_pinned(void* address) {
  const cudaError_t error = forget_pinned(address, true);
  if (error == cudaSuccess) std::free(address);
  return error;
}

cudaError_t unregister_pinned(void* address) { return forget_pinned(address, false); }

Location location_of(const void* address, std::size_t bytes) {
  const Unordered hidden;
  const std::scoped_lock lock(books().mutex);
  const std::uintptr_t at = number(address);
  const auto on_device = before(books().device, at);
  if (on_device != books().device.end() && at < on_device->first + on_device->second.mapped) {
    const DeviceRange& range = on_device->second;
    const std::size_t offset = at - on_device->first;
    return {cudaMemoryTypeDevice, range.device, offset + bytes <= range.bytes, true,
            range.access + offset};
  }
  char* self = const_cast<char*>(static_cast<const char*>(address));
  const auto locked = before(books().pinned, at);
  if (locked != books().pinned.end() && at < locked->first + locked->second.bytes) {
    const bool whole = at + bytes <= locked->first + locked->second.bytes;
    return {cudaMemoryTypeHost, locked->second.device, whole, true, self};
  }
  return {cudaMemoryTypeUnregistered, -1, true, false, self};
}

OpenForKernels::OpenForKernels() {
  const Unordered hidden;
  const std::scoped_lock lock(books().mutex);
  if (books().kernels++ == 0) protect_all(books(), PROT_READ | PROT_WRITE);
}

OpenForKernels::~OpenForKernels() {
  const Unordered hidden;
  const std::scoped_lock lock(books().mutex);
  if (--books().kernels == 0) protect_all(books(), PROT_NONE);
}

std::uint64_t live_device_allocations() {
  const Unordered hidden;
  const std::scoped_lock lock(books().mutex);
  return books().device.size();
}

std::uint64_t live_pinned_ranges() {
  const Unordered hidden;
  const std::scoped_lock lock(books().mutex);
  return books().pinned.size();
}

}  // namespace prophet::emulation
