#include "device/cpu/lanes.h"

#if PROPHET_HAVE_URING

#include <liburing.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>
#include <vector>

namespace prophet {
namespace {

// The ring's thread sleeps in one place, for completions; an eventfd polled by the ring
// turns "the queue was added to" into a completion.
class UringLanes final : public Lanes {
 public:
  UringLanes(LaneQueue& queue, const FileReader& reader, int depth)
      : queue_(queue), reader_(reader), reads_(static_cast<std::size_t>(depth)) {
    for (std::size_t i = reads_.size(); i-- > 0;) free_.push_back(i);
  }

  // An empty string, or why the ring cannot be had.
  std::string start() {
    const int error = io_uring_queue_init(static_cast<unsigned>(reads_.size()) + 1, &ring_, 0);
    if (error < 0) return std::string("io_uring_setup: ") + std::strerror(-error);
    has_ring_ = true;
    io_uring_probe* probe = io_uring_get_probe_ring(&ring_);
    const bool can_read = probe != nullptr && io_uring_opcode_supported(probe, IORING_OP_READ);
    io_uring_free_probe(probe);
    if (!can_read) return "this kernel's io_uring has no plain reads (they came with Linux 5.6)";
    event_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (event_ < 0) return std::string("eventfd: ") + std::strerror(errno);
    thread_ = std::thread([this] { run(); });
    return {};
  }

  ~UringLanes() override {
    wake();
    if (thread_.joinable()) thread_.join();
    if (has_ring_) io_uring_queue_exit(&ring_);
    if (event_ >= 0) close(event_);
  }

  std::string description() const override { return "io_uring"; }

  void wake() override {
    if (event_ >= 0) eventfd_write(event_, 1);
  }

 private:
  static constexpr std::uint64_t kWake = ~std::uint64_t{0};

  void run() {
    watch_event();
    for (;;) {
      while (!free_.empty()) {
        auto read = queue_.next();
        if (!read) break;
        begin(std::move(*read));
      }
      if (free_.size() == reads_.size() && queue_.stopped()) return;
      const int error = io_uring_submit_and_wait(&ring_, 1);
      if (error < 0 && error != -EINTR && error != -EAGAIN && error != -EBUSY) {
        return give_up(std::string("io_uring_enter: ") + std::strerror(-error));
      }
      take_completions();
    }
  }

  void watch_event() {
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);
    io_uring_prep_poll_add(entry, event_, POLLIN);
    io_uring_sqe_set_data64(entry, kWake);
  }

  void begin(FileRead read) {
    if (reader_.begin(read) == FileReader::Next::failed) return queue_.finish(read);
    const std::size_t slot = free_.back();
    free_.pop_back();
    reads_[slot] = std::move(read);
    submit(slot);
  }

  // There are entries for every slot and the event, and each has at most one under way.
  void submit(std::size_t slot) {
    const auto attempt = reader_.attempt(reads_[slot]);
    io_uring_sqe* entry = io_uring_get_sqe(&ring_);
    io_uring_prep_read(entry, attempt.fd, attempt.to, attempt.bytes, attempt.offset);
    io_uring_sqe_set_data64(entry, slot);
  }

  void take_completions() {
    io_uring_cqe* done = nullptr;
    while (io_uring_peek_cqe(&ring_, &done) == 0) {
      const std::uint64_t slot = io_uring_cqe_get_data64(done);
      const int result = done->res;
      io_uring_cqe_seen(&ring_, done);
      if (slot == kWake) {
        eventfd_t count;
        eventfd_read(event_, &count);
        watch_event();
      } else if (reader_.take(reads_[slot], result) == FileReader::Next::attempt) {
        submit(slot);
      } else {
        queue_.finish(reads_[slot]);
        free_.push_back(slot);
      }
    }
  }

  // The ring is of no use any more. The kernel may still write to slots of reads in flight: they
  // fail, and so does every later read, so nothing that lands there is ever taken for weights.
  void give_up(const std::string& why) {
    const std::string sentence =
        "reading through io_uring broke down (" + why + "): load the model again with io=pread";
    queue_.break_down(sentence);
    std::vector<bool> idle(reads_.size(), false);
    for (std::size_t slot : free_) idle[slot] = true;
    for (std::size_t slot = 0; slot < reads_.size(); ++slot) {
      if (idle[slot]) continue;
      reads_[slot].why = sentence;
      queue_.finish(reads_[slot]);
    }
  }

  LaneQueue& queue_;
  const FileReader& reader_;
  std::vector<FileRead> reads_;    // by slot, in flight
  std::vector<std::size_t> free_;  // slots not in flight
  io_uring ring_ = {};
  bool has_ring_ = false;
  int event_ = -1;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<Lanes> make_uring_lanes(LaneQueue& queue, const FileReader& reader, int depth,
                                        std::string& why_not) {
  auto lanes = std::make_unique<UringLanes>(queue, reader, depth);
  why_not = lanes->start();
  if (!why_not.empty()) return nullptr;
  return lanes;
}

}  // namespace prophet

#else

namespace prophet {

std::unique_ptr<Lanes> make_uring_lanes(LaneQueue&, const FileReader&, int, std::string& why_not) {
  why_not = "built without liburing";
  return nullptr;
}

}  // namespace prophet

#endif
