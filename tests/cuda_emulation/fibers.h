// Threads of control that the kernel emulator switches by hand, and the memory of a block of them.
//
// A sanitizer in the process learns of stacks and switches; publish and observe tell
// ThreadSanitizer that what happened before one precedes what happens after the other. Without a
// sanitizer they do nothing.
#pragma once

#include <cstddef>

namespace prophet::emulation {

struct Fiber {
  void* stack_pointer = nullptr;
  const char* stack = nullptr;
  std::size_t bytes = 0;
  void* fake_stack = nullptr;  // AddressSanitizer's
  void* thread = nullptr;      // ThreadSanitizer's
};

// The fibers of one launch, entered from and left to the thread that made this object.
class Fibers {
 public:
  Fibers();
  // `body` never returns: it ends with finish.
  void make(Fiber& fiber, char* stack, std::size_t bytes, void (*body)());
  void enter(Fiber& fiber);
  void leave(Fiber& fiber);                // from inside
  [[noreturn]] void finish(Fiber& fiber);  // from inside: it is never entered again
  void destroy(Fiber& fiber);              // done or not
  void join();                             // all that finished precedes what the caller does now

 private:
  static void begin();
  void to_owner(Fiber& fiber, bool for_good);

  void* stack_pointer_ = nullptr;
  void* fake_stack_ = nullptr;
  const void* stack_ = nullptr;
  std::size_t bytes_ = 0;
  void* thread_ = nullptr;
  char finished_ = 0;  // a tag
};

// Stacks with guard pages, and shared memory that starts as `poison`, for one block at a time.
class BlockMemory {
 public:
  static constexpr std::size_t kStack = 64 << 10;

  BlockMemory(std::size_t threads, std::size_t shared_bytes, unsigned char poison);
  ~BlockMemory();
  BlockMemory(const BlockMemory&) = delete;
  BlockMemory& operator=(const BlockMemory&) = delete;

  // For the next block: poisons the first `used` bytes of shared memory again. Under
  // ThreadSanitizer it is mapped anew, so that nothing is known of the blocks before.
  void renew(std::size_t used);
  std::size_t threads() const { return threads_; }
  char* stack(std::size_t thread) const;  // kStack bytes
  char* shared() const;
  char* tags() const;  // 4096 bytes nobody else uses

 private:
  void map();

  const std::size_t threads_, shared_bytes_, bytes_;
  const unsigned char poison_;
  char* first_ = nullptr;
};

void publish(const void* tag);
void observe(const void* tag);
// Bytes that must not be touched, to AddressSanitizer.
void forbid(const void* first, std::size_t bytes);
void allow(const void* first, std::size_t bytes);

}  // namespace prophet::emulation
