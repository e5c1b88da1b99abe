// Threads of control that the kernel emulator switches by hand, and the memory of a block of them.
//
// A sanitizer in the process learns of stacks and switches; publish and observe tell
// ThreadSanitizer that what happened before one precedes what happens after the other. Without a
// sanitizer they do nothing.
#pragma once

#include <cstddef>
#include <vector>

namespace prophet::emulation {

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  std::size_t bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* thread = nullptr;      // ThreadSanitizer's
};

// What blocks need: fibers with stacks between guard pages, and shared memory, kept for the blocks
// to come. ThreadSanitizer takes all that one fiber does for ordered, whichever block it plays in.
class BlockMemory {
 public:
  BlockMemory(std::size_t fibers, std::size_t shared_bytes, unsigned char poison);
  ~BlockMemory();
  BlockMemory(const BlockMemory&) = delete;
  BlockMemory& operator=(const BlockMemory&) = delete;

  std::size_t fibers() const { return fibers_.size(); }
  Fiber& fiber(std::size_t i) { return fibers_[i]; }
  char* shared() const { return shared_; }
  char* tags() const { return tags_; }  // kTags bytes nobody else uses
  // For the next block: the first `used` bytes of shared memory are poison again, and nothing is
  // known of who wrote them before.
  void renew(std::size_t used);

 private:
  static constexpr std::size_t kTags = 1024;
  void make_shared();

  std::vector<Fiber> fibers_;
  const std::size_t shared_bytes_;
  const unsigned char poison_;
  char* stacks_ = nullptr;
  char* shared_ = nullptr;
  char* tags_ = nullptr;
};

// Switches between the thread that made this object and fibers.
class Fibers {
 public:
  Fibers();
  // The next `enter` begins `body`, which never returns: it ends with finish.
  void start(Fiber& fiber, void (*body)());
  void enter(Fiber& fiber);
  void leave(Fiber& fiber);                // from inside
  [[noreturn]] void finish(Fiber& fiber);  // from inside
  void open();  // what the caller has done precedes all that fibers started from now on do
  void join();  // all that finished precedes what the caller does now

 private:
  static void begin();
  void to_owner(Fiber& fiber, bool for_good);

  void* stack_pointer_ = nullptr;
  void* fake_stack_ = nullptr;
  const void* stack_ = nullptr;
  std::size_t bytes_ = 0;
  void* thread_ = nullptr;
  alignas(8) char opened_[8] = {}, finished_[8] = {};  // tags
};

// Whether there is a sanitizer that orders fibers.
bool orders_fibers();
void publish(const void* tag);
void observe(const void* tag);
// Bytes that must not be touched, to AddressSanitizer.
void forbid(const void* first, std::size_t bytes);
void allow(const void* first, std::size_t bytes);

}  // namespace prophet::emulation
