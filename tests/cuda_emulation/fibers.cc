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

bool address_sanitizer() { return __sanitizer_start_switch_fiber != nullptr; }
bool thread_sanitizer() { return __tsan_create_fiber != nullptr; }

// What a fresh fiber's first instructions need; a fiber starts on the thread that enters it.
thread_local Fibers* owner = nullptr;
thread_local void (*first_body)() = nullptr;

}  // namespace

Fibers::Fibers() {
  if (thread_sanitizer()) thread_ = __tsan_get_current_fiber();
}

void Fibers::begin() {
  if (address_sanitizer()) {
    __sanitizer_finish_switch_fiber(nullptr, &owner->stack_, &owner->bytes_);
  }
  first_body();
  std::abort();
}

void Fibers::make(Fiber& fiber, char* stack, std::size_t bytes, void (*body)()) {
  first_body = body;
  fiber.stack = stack;
  fiber.bytes = bytes;
  fiber.fake_stack = nullptr;
  if (thread_sanitizer()) fiber.thread = __tsan_create_fiber(0);
  // The first switch pops six registers and returns into begin, which must find the stack pointer
  // at 8 modulo 16, as after a call.
  void** top = reinterpret_cast<void**>(stack + bytes);
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
  publish(&finished_);
  to_owner(fiber, true);
  std::abort();
}

void Fibers::destroy(Fiber& fiber) {
  if (thread_sanitizer()) __tsan_destroy_fiber(fiber.thread);
}

void Fibers::join() { observe(&finished_); }

BlockMemory::BlockMemory(std::size_t threads, std::size_t shared_bytes, unsigned char poison)
    : threads_(threads),
      shared_bytes_((shared_bytes + kPage - 1) / kPage * kPage),
      bytes_(threads * (kStack + kPage) + kPage + shared_bytes_),
      poison_(poison) {
  map();
}

BlockMemory::~BlockMemory() { munmap(first_, bytes_); }

void BlockMemory::map() {
  void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  first_ = static_cast<char*>(memory);
  for (std::size_t i = 0; i < threads_; ++i) mprotect(stack(i) - kPage, kPage, PROT_NONE);
  std::memset(shared(), poison_, shared_bytes_);
}

void BlockMemory::renew(std::size_t used) {
  if (thread_sanitizer()) {
    munmap(first_, bytes_);
    map();
  } else {
    std::memset(shared(), poison_, used);
  }
}

char* BlockMemory::stack(std::size_t thread) const {
  return first_ + thread * (kStack + kPage) + kPage;
}
char* BlockMemory::tags() const { return first_ + threads_ * (kStack + kPage); }
char* BlockMemory::shared() const { return tags() + kPage; }

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
