#include "cuda_emulation/fibers.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#ifndef __x86_64__
#error "the kernel emulator switches fibers on x86-64 only"
#endif

// Found in the process if it was built with a sanitizer, else null.
extern "C" {
#define PROPHET_WEAK __attribute__((weak))
PROPHET_WEAK void __sanitizer_start_switch_fiber(void** fake, const void* stack, std::size_t bytes);
PROPHET_WEAK void __sanitizer_finish_switch_fiber(void* fake, const void** stack,
                                                  std::size_t* bytes);
PROPHET_WEAK void __asan_poison_memory_region(const volatile void* first, std::size_t bytes);
PROPHET_WEAK void __asan_unpoison_memory_region(const volatile void* first, std::size_t bytes);
PROPHET_WEAK void* __tsan_get_current_fiber();
PROPHET_WEAK void* __tsan_create_fiber(unsigned flags);
PROPHET_WEAK void __tsan_destroy_fiber(void* fiber);
PROPHET_WEAK void __tsan_switch_to_fiber(void* fiber, unsigned flags);
PROPHET_WEAK void __tsan_acquire(void* tag);
PROPHET_WEAK void __tsan_release(void* tag);
PROPHET_WEAK void AnnotateIgnoreWritesBegin(const char* file, int line);
PROPHET_WEAK void AnnotateIgnoreWritesEnd(const char* file, int line);

// Keeps the registers that a callee must keep on the present stack, and goes on with another.
void prophet_switch_stack(void** keep, void* to);
}

asm(R"(
.text
.globl prophet_switch_stack
.hidden prophet_switch_stack
.type prophet_switch_stack, @function
prophet_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size prophet_switch_stack, . - prophet_switch_stack
.section .note.GNU-stack, "", @progbits
.text
)");

namespace prophet::emulation {
namespace {

constexpr unsigned kNoSync = 1;  // __tsan_switch_to_fiber_no_sync: a switch orders nothing
constexpr std::size_t kPage = 4096;
constexpr std::size_t kStack = 64 << 10;

bool address_sanitizer() { return __sanitizer_start_switch_fiber != nullptr; }
bool thread_sanitizer() { return __tsan_create_fiber != nullptr; }

// What a fresh fiber's first instructions need; a fiber starts on the thread that enters it.
thread_local Fibers* owner = nullptr;
thread_local void (*first_body)() = nullptr;

}  // namespace

BlockMemory::BlockMemory(std::size_t fibers, std::size_t shared_bytes, unsigned char poison)
    : fibers_(fibers), shared_bytes_(shared_bytes), poison_(poison) {
  void* memory = mmap(nullptr, fibers * (kStack + kPage), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  stacks_ = static_cast<char*>(memory);
  for (std::size_t i = 0; i < fibers; ++i) {
    char* const guard = stacks_ + i * (kStack + kPage);
    mprotect(guard, kPage, PROT_NONE);
    fibers_[i].stack = guard + kPage;
    fibers_[i].bytes = kStack;
    if (thread_sanitizer()) fibers_[i].thread = __tsan_create_fiber(0);
  }
  make_shared();
}

BlockMemory::~BlockMemory() {
  allow(shared_, shared_bytes_);
  std::free(shared_);
  for (Fiber& fiber : fibers_) {
    if (thread_sanitizer()) __tsan_destroy_fiber(fiber.thread);
  }
  munmap(stacks_, fibers_.size() * (kStack + kPage));
}

void BlockMemory::make_shared() {
  shared_ = static_cast<char*>(std::malloc(shared_bytes_ + kTags));
  if (!shared_) throw std::bad_alloc();
  tags_ = shared_ + shared_bytes_;
  std::memset(shared_, poison_, shared_bytes_);
}

// ThreadSanitizer forgets what it knew of memory that is given back and taken anew. Who wrote it
// last is no matter meanwhile.
void BlockMemory::renew(std::size_t used) {
  if (!thread_sanitizer()) {
    allow(shared_, used);
    std::memset(shared_, poison_, used);
    return;
  }
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  std::free(shared_);
  make_shared();
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
}

Fibers::Fibers() {
  if (thread_sanitizer()) thread_ = __tsan_get_current_fiber();
}

void Fibers::begin() {
  if (address_sanitizer()) {
    __sanitizer_finish_switch_fiber(nullptr, &owner->stack_, &owner->bytes_);
  }
  observe(owner->opened_);
  first_body();
  std::abort();
}

void Fibers::start(Fiber& fiber, void (*body)()) {
  first_body = body;
  fiber.fake_stack = nullptr;
  // The first switch pops six registers and returns into begin, which must find the stack pointer
  // at 8 modulo 16, as after a call.
  void** top = reinterpret_cast<void**>(fiber.stack + fiber.bytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&Fibers::begin);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.stack_pointer = top;
}

void Fibers::enter(Fiber& fiber) {
  owner = this;
  if (address_sanitizer()) __sanitizer_start_switch_fiber(&fake_stack_, fiber.stack, fiber.bytes);
  if (thread_sanitizer()) __tsan_switch_to_fiber(fiber.thread, kNoSync);
  prophet_switch_stack(&stack_pointer_, fiber.stack_pointer);
  if (address_sanitizer()) __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
}

void Fibers::to_owner(Fiber& fiber, bool for_good) {
  if (address_sanitizer()) {
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.fake_stack, stack_, bytes_);
  }
  if (thread_sanitizer()) __tsan_switch_to_fiber(thread_, kNoSync);
  prophet_switch_stack(&fiber.stack_pointer, stack_pointer_);
  if (address_sanitizer()) __sanitizer_finish_switch_fiber(fiber.fake_stack, &stack_, &bytes_);
}

void Fibers::leave(Fiber& fiber) { to_owner(fiber, false); }

void Fibers::finish(Fiber& fiber) {
  publish(finished_);
  to_owner(fiber, true);
  std::abort();
}

void Fibers::open() { publish(opened_); }
void Fibers::join() { observe(finished_); }

bool orders_fibers() { return thread_sanitizer(); }
void publish(const void* tag) {
  if (thread_sanitizer()) __tsan_release(const_cast<void*>(tag));
}
void observe(const void* tag) {
  if (thread_sanitizer()) __tsan_acquire(const_cast<void*>(tag));
}
void forbid(const void* first, std::size_t bytes) {
  if (__asan_poison_memory_region) __asan_poison_memory_region(first, bytes);
}
void allow(const void* first, std::size_t bytes) {
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(first, bytes);
}

}  // namespace prophet::emulation
