#include "device/cuda/cuda_bandwidth.h"

#include <chrono>
#include <vector>

#include "device/cuda/cuda_handles.h"

namespace prophet {
namespace {

using Clock = std::chrono::steady_clock;

// One direction: a stream, a buffer on either side, and how much has gone.
struct Way {
  CudaHandle stream, host, device;
  CudaCopy kind = CudaCopy::to_device;
  std::uint64_t bytes = 0;
  double seconds = 0;

  double rate() const { return seconds > 0 ? static_cast<double>(bytes) / seconds : 0; }
};

class Meter {
 public:
  Meter(const CudaApi& api, std::size_t chunk) : api_(api), chunk_(chunk) {}

  Way way(CudaCopy kind) const {
    Way made;
    made.kind = kind;
    made.stream = {make("making a stream", [&](void** to) { return api_.stream_create(0, to); }),
                   {api_.stream_destroy}};
    made.host = {make("page-locking " + size(), [&](void** to) { return api_.pin(chunk_, to); }),
                 {api_.unpin}};
    made.device = {make("allocating " + size() + " of device memory",
                        [&](void** to) { return api_.allocate(chunk_, to); }),
                   {api_.release}};
    return made;
  }

  // Copies along all ways at once, keeping two chunks queued on each, until the time is over.
  // `host` in place of the way's own page-locked buffer.
  void run(std::vector<Way*> ways, double seconds, void* host = nullptr) const {
    for (Way* way : ways) {
      copy(*way, host);  // the first of a buffer is slower
      wait(*way);
      way->bytes = 0;
    }
    const auto begin = Clock::now();
    std::chrono::duration<double> spent{};
    do {
      for (Way* way : ways)
        for (int queued = 0; queued < 2; ++queued) copy(*way, host);
      for (Way* way : ways) {
        wait(*way);
        way->seconds = std::chrono::duration<double>(Clock::now() - begin).count();
      }
      spent = Clock::now() - begin;
    } while (spent.count() < seconds);
  }

  bool registers() const {
    std::vector<std::byte> pages(chunk_ + kPage);
    const auto at = reinterpret_cast<std::uintptr_t>(pages.data());
    void* first = pages.data() + (kPage - at % kPage) % kPage;
    if (api_.register_host(first, chunk_) != kCudaSuccess) return false;
    return api_.unregister_host(first) == kCudaSuccess;
  }

 private:
  static constexpr std::size_t kPage = 4096;

  std::string size() const { return std::to_string(chunk_ >> 20) + " MiB"; }

  template <class Make>
  void* make(const std::string& what, Make call) const {
    void* made = nullptr;
    cuda_check(api_, call(&made), what);
    return made;
  }

  void copy(Way& way, void* other) const {
    void* host = other ? other : way.host.get();
    const bool up = way.kind == CudaCopy::to_device;
    cuda_check(api_,
               api_.copy_async(up ? way.device.get() : host, up ? host : way.device.get(), chunk_,
                               way.kind, way.stream.get()),
               "copying " + size() + (up ? " to" : " from") + " the device");
    way.bytes += chunk_;
  }

  void wait(const Way& way) const {
    cuda_check(api_, api_.stream_synchronize(way.stream.get()), "waiting for copies of " + size());
  }

  const CudaApi& api_;
  const std::size_t chunk_;
};

}  // namespace

CudaBandwidth cuda_bandwidth(const CudaLibrary& library, double seconds, std::size_t chunk_bytes) {
  const CudaApi& api = library.api();
  CudaBandwidth found;
  on_device(api, library.device(), [&] {
    const Meter meter(api, chunk_bytes);
    Way up = meter.way(CudaCopy::to_device), down = meter.way(CudaCopy::to_host);
    meter.run({&up}, seconds);
    found.to_device = up.rate();
    meter.run({&down}, seconds);
    found.to_host = down.rate();
    meter.run({&up, &down}, seconds);
    found.both_to_device = up.rate();
    found.both_to_host = down.rate();
    std::vector<std::byte> pageable(chunk_bytes);
    meter.run({&up}, seconds, pageable.data());
    found.pageable_to_device = up.rate();
    found.registers = meter.registers();
  });
  return found;
}

}  // namespace prophet
