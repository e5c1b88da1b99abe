// What ThreadSanitizer may learn from the fake runtime: the order that CUDA promises, and no other.
//
// The fake is built without the sanitizer (PROPHET_EMULATION_TSAN), as a shared object of its own;
// the library on top of it and the tests are built with it. Locks are seen even so, because the
// sanitizer intercepts them; a lock of ours would order two streams that CUDA leaves unordered and
// hide the race between them. So every use of one stands inside `Unordered`, where the fake's own
// books count as no memory either, and what CUDA does promise is said by `Edge`. In other builds
// both are empty.
#pragma once

#ifdef PROPHET_EMULATION_TSAN
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreSyncBegin(const char* file, int line);
void AnnotateIgnoreSyncEnd(const char* file, int line);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace prophet::emulation {

// Declare it before the lock, so that it ends after the unlock.
class Unordered {
 public:
#ifdef PROPHET_EMULATION_TSAN
  Unordered() {
    AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unordered() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
  }
#else
  Unordered() {}
  ~Unordered() {}
#endif
  Unordered(const Unordered&) = delete;
  Unordered& operator=(const Unordered&) = delete;
};

// Everything before give() happened before everything after a later take().
class Edge {
 public:
#ifdef PROPHET_EMULATION_TSAN
  void give() { __tsan_release(at_); }
  void take() { __tsan_acquire(at_); }
#else
  void give() {}
  void take() {}
#endif

 private:
  alignas(8) char at_[8] = {};  // only its address counts
};

}  // namespace prophet::emulation
