#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <thread>
#include <vector>

#include "device/cpu/lanes.h"

namespace prophet {
namespace {

constexpr int kThreads = 4;

class PreadLanes final : public Lanes {
 public:
  PreadLanes(LaneQueue& queue, const FileReader& reader, int threads)
      : queue_(queue), reader_(reader) {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { run(); });
  }

  ~PreadLanes() override {
    for (std::thread& thread : threads_) thread.join();
  }

  std::string description() const override { return "pread x" + std::to_string(threads_.size()); }

 private:
  void run() {
    while (auto read = queue_.next_or_wait()) {
      auto next = reader_.begin(*read);
      while (next == FileReader::Next::attempt) {
        const auto attempt = reader_.attempt(*read);
        const ssize_t got =
            pread(attempt.fd, attempt.to, attempt.bytes, static_cast<off_t>(attempt.offset));
        next = reader_.take(*read, got < 0 ? -errno : got);
      }
      queue_.finish(*read);
    }
  }

  LaneQueue& queue_;
  const FileReader& reader_;
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<Lanes> make_pread_lanes(LaneQueue& queue, const FileReader& reader, int depth) {
  return std::make_unique<PreadLanes>(queue, reader, std::min(depth, kThreads));
}

}  // namespace prophet
