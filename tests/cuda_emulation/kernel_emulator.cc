// The scheduler of kernel_emulator.h. This file is never compiled with a sanitizer; it tells the
// one in the process, if any, about its fibers and about the order that a device promises.
#include "cuda_emulation/kernel_emulator.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "cuda_emulation/fibers.h"

namespace prophet::emulation {
namespace {

constexpr std::size_t kGuard = 64;             // bytes on either side of shared memory
constexpr unsigned char kPoison = 0xFF;        // a NaN, as float, float16 and bfloat16
constexpr std::size_t kSharedMost = 99 << 10;  // of the smallest architecture that is built for
constexpr std::size_t kSharedBytes = 2 * kSharedMost;     // with guards
constexpr std::uint64_t kNobody = 0x7fc0dead7fc0deadull;  // a NaN as well

// Under ThreadSanitizer so many blocks in a row are played by different fibers, and so unordered.
constexpr std::size_t kTeams = 2;
constexpr std::size_t kRemembered = 16;    // atomics between two fences
constexpr std::size_t kDeclarations = 32;  // of shared memory in one kernel

enum class State { ready, barrier, warp, done };
enum class Operation { none, exchange, ballot, sync };

struct Thread {
  Fiber* fiber = nullptr;
  uint3 place;
  State state = State::ready;
  Source source{"", 0};
  Operation operation = Operation::none;
  unsigned mask = 0;
  int from = 0;
  std::uint64_t value = 0, result = 0;
  bool napping = false;
  unsigned barriers = 0, warp_syncs = 0;            // passed
  bool fenced = false;                              // since then its atomics publish what it wrote
  std::array<const void*, kRemembered> observed{};  // the last atomics since the last fence
  std::size_t observed_count = 0;
};

std::atomic<std::uint64_t> launches{0};

bool same(Source a, Source b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }
std::string text(Source source) {
  return std::string(source.file) + ":" + std::to_string(source.line);
}

// Of the calling thread, kept between launches.
BlockMemory& block_memory(std::size_t threads) {
  thread_local std::unique_ptr<BlockMemory> memory;
  const std::size_t fibers = threads * (orders_fibers() ? kTeams : 1);
  if (!memory || memory->fibers() < fibers) {
    memory = std::make_unique<BlockMemory>(fibers, kSharedBytes, kPoison);
  }
  return *memory;
}

// One launch, on the thread that runs it.
class Run {
 public:
  explicit Run(const Kernel& kernel)
      : kernel_(kernel),
        count_(std::size_t(kernel.block.x) * kernel.block.y * kernel.block.z),
        random_(schedule_seed() * 0x9E3779B97F4A7C15ull + ++launches),
        memory_(block_memory(count_)),
        threads_(count_) {
    const char* const place = std::getenv("PROPHET_EMULATED_DROP");
    const char* const colon = place ? std::strrchr(place, ':') : nullptr;
    if (colon) dropped_file_.assign(place, colon), dropped_line_ = std::atoi(colon + 1);
  }

  void run();

  Place place;
  Thread& current() { return threads_[current_]; }
  std::size_t current_index() const { return current_; }
  void pause() { fibers_.leave(*current().fiber); }
  void* shared(const void* declaration, std::size_t bytes);
  void* dynamic() const { return dynamic_; }
  bool chance(unsigned of) { return random_() % of == 0; }
  // Of this barrier; the next one has the other, since threads may reach it before all have left.
  char* barrier_tag() { return memory_.tags() + 8 * (current().barriers++ % 2); }
  char* warp_tag() {
    return memory_.tags() + 16 + 16 * (current_ / 32) + 8 * (current().warp_syncs++ % 2);
  }
  bool drops(Source source) const { return same(source, {dropped_file_.c_str(), dropped_line_}); }
  [[noreturn]] void fail(const std::string& why);

 private:
  struct Region {
    const void* declaration;
    char* first;
    std::size_t bytes;
  };

  void start_block(unsigned block);
  void run_block();
  void end_block();
  bool runnable(std::size_t warp);
  bool complete_operation(std::size_t warp);
  void run_warp(std::size_t warp);
  void finish_barrier();
  char* reserve(const void* declaration, std::size_t bytes);
  void report(const std::string& why);
  std::size_t warp_end(std::size_t warp) const { return std::min(count_, warp * 32 + 32); }

  const Kernel& kernel_;
  const std::size_t count_;
  std::mt19937_64 random_;
  Fibers fibers_;
  BlockMemory& memory_;
  std::vector<Thread> threads_;
  std::size_t started_ = 0;  // blocks
  std::size_t current_ = 0;
  std::vector<std::uint64_t> priority_;  // of warps
  // Threads fill it, so it must not allocate: a sanitizer would take that for a race of theirs.
  std::array<Region, kDeclarations> regions_{};
  std::size_t region_count_ = 0;
  std::size_t reserved_ = 0;
  void* dynamic_ = nullptr;
  bool failed_ = false;
  std::string dropped_file_;  // the mutant's barrier, if any
  int dropped_line_ = 0;
};

thread_local Run* running = nullptr;

void Run::report(const std::string& why) {
  if (failed_) return;
  failed_ = true;
  std::ostringstream text;
  text << "block (" << place.block.x << ", " << place.block.y << ", " << place.block.z << ") of "
       << kernel_.name << ": " << why;
  kernel_failed(kernel_.name, text.str().c_str());
}

// From inside a CUDA thread: none of the launch goes on.
void Run::fail(const std::string& why) {
  report(why);
  pause();
  std::abort();
}

char* Run::reserve(const void* declaration, std::size_t bytes) {
  const std::size_t whole = (bytes + 15) / 16 * 16;
  if (region_count_ == kDeclarations || reserved_ + whole + 2 * kGuard > kSharedBytes) {
    return nullptr;
  }
  char* const first = memory_.shared() + reserved_ + kGuard;
  forbid(first - kGuard, kGuard);
  forbid(first + bytes, whole - bytes + kGuard);
  regions_[region_count_++] = {declaration, first, bytes};
  reserved_ += whole + 2 * kGuard;
  return first;
}

void* Run::shared(const void* declaration, std::size_t bytes) {
  std::size_t total = bytes;
  for (std::size_t i = 0; i < region_count_; ++i) {
    if (regions_[i].declaration == declaration) return regions_[i].first;
    total += regions_[i].bytes;
  }
  char* const first = reserve(declaration, bytes);
  if (first == nullptr || total > kSharedMost) fail("more shared memory than a block can have");
  return first;
}

void Run::start_block(unsigned block) {
  place.block = {block % kernel_.grid.x, block / kernel_.grid.x % kernel_.grid.y,
                 block / kernel_.grid.x / kernel_.grid.y};
  region_count_ = reserved_ = 0;
  dynamic_ = reserve(nullptr, kernel_.shared_bytes);
  const std::size_t team = started_++ % std::max<std::size_t>(memory_.fibers() / count_, 1);
  fibers_.open();
  for (std::size_t i = 0; i < count_; ++i) {
    Thread& t = threads_[i];
    const unsigned x = kernel_.block.x, y = kernel_.block.y, n = unsigned(i);
    t.state = State::ready;
    t.place = {n % x, n / x % y, n / x / y};
    t.source = {"", 0};
    t.fenced = t.napping = false;
    t.observed_count = 0;
    t.barriers = t.warp_syncs = 0;
    t.fiber = &memory_.fiber(team * count_ + i);
    fibers_.start(*t.fiber, [] {
      running->place.thread = running->current().place;
      running->kernel_.thread(running->kernel_.arguments);
      running->current().state = State::done;
      running->fibers_.finish(*running->current().fiber);
    });
  }
  priority_.resize((count_ + 31) / 32);
  for (std::uint64_t& p : priority_) p = random_();
}

// Performs the operation that every lane of its mask has reached, if there is one.
bool Run::complete_operation(std::size_t warp) {
  const std::size_t first = warp * 32, last = warp_end(warp);
  for (std::size_t i = first; i < last; ++i) {
    const Thread& asks = threads_[i];
    if (asks.state != State::warp) continue;
    bool all = true;
    unsigned votes = 0;
    for (std::size_t j = first; j < first + 32; ++j) {
      if (!(asks.mask >> (j - first) & 1)) continue;
      if (j >= last) {
        report("a warp operation names lanes that its block does not have, at " +
               text(asks.source));
        return false;
      }
      const Thread& other = threads_[j];
      all = all && other.state == State::warp && other.operation == asks.operation &&
            same(other.source, asks.source) && other.mask == asks.mask;
      if (other.value) votes |= 1u << (j - first);
    }
    if (!all) continue;
    const Operation operation = asks.operation;
    const unsigned mask = asks.mask;
    for (std::size_t j = first; j < last; ++j) {
      if (!(mask >> (j - first) & 1)) continue;
      Thread& lane = threads_[j];
      const bool known = lane.from >= 0 && lane.from < 32 && (mask >> lane.from & 1);
      lane.result = operation == Operation::ballot ? votes
                    : operation == Operation::sync ? 0
                    : known                        ? threads_[first + std::size_t(lane.from)].value
                                                   : kNobody;
    }
    for (std::size_t j = first; j < last; ++j) {
      if (mask >> (j - first) & 1) threads_[j].state = State::ready;
    }
    return true;
  }
  return false;
}

bool Run::runnable(std::size_t warp) {
  for (std::size_t i = warp * 32; i < warp_end(warp); ++i) {
    if (threads_[i].state == State::ready) return true;
  }
  return complete_operation(warp);
}

void Run::run_warp(std::size_t warp) {
  std::size_t order[32], count = 0, napping = 0;
  for (std::size_t i = warp * 32; i < warp_end(warp); ++i) {
    if (threads_[i].state == State::ready) order[count++] = i;
  }
  std::shuffle(order, order + count, random_);
  for (std::size_t i = 0; i < count && !failed_; ++i) {
    current_ = order[i];
    place.thread = threads_[current_].place;
    threads_[current_].napping = false;
    fibers_.enter(*threads_[current_].fiber);
    napping += threads_[current_].napping;
  }
  if (napping > 0) {  // waits for somebody: last in turn, and the processor is free meanwhile
    priority_[warp] = 0;
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  } else if (chance(64)) {
    priority_[warp] = random_() >> (random_() % 40);
  }
}

// Nobody can run: all threads are done or at one barrier, or they will never be.
void Run::finish_barrier() {
  const Thread* waiting = nullptr;
  const Thread* stuck = nullptr;
  std::size_t done = 0;
  for (const Thread& t : threads_) {
    done += t.state == State::done;
    if (t.state == State::barrier && !waiting) waiting = &t;
    if (t.state == State::warp) stuck = &t;
  }
  if (stuck) {
    return report("lanes of a warp wait for others that never come, at " + text(stuck->source));
  }
  if (done > 0) {
    return report("threads returned while others wait at a barrier, " + text(waiting->source));
  }
  for (Thread& t : threads_) {
    if (!same(t.source, waiting->source)) {
      return report("threads wait at different barriers, " + text(waiting->source) + " and " +
                    text(t.source));
    }
    t.state = State::ready;
  }
}

void Run::run_block() {
  while (!failed_) {
    const std::size_t warps = priority_.size();
    std::size_t best = warps;
    for (std::size_t w = 0; w < warps; ++w) {
      if ((best == warps || priority_[w] > priority_[best]) && runnable(w)) best = w;
    }
    if (failed_) return;
    if (best < warps) {
      run_warp(best);
      continue;
    }
    if (std::all_of(threads_.begin(), threads_.end(),
                    [](const Thread& t) { return t.state == State::done; })) {
      return;
    }
    finish_barrier();
  }
}

void Run::end_block() {
  allow(memory_.shared(), reserved_);
  for (std::size_t i = 0; i < region_count_; ++i) {
    const Region& region = regions_[i];
    const std::size_t whole = (region.bytes + 15) / 16 * 16;
    char* const last = region.first + region.bytes;
    const auto clean = [](char c) { return static_cast<unsigned char>(c) == kPoison; };
    if (!std::all_of(region.first - kGuard, region.first, clean) ||
        !std::all_of(last, region.first + whole + kGuard, clean)) {
      report("shared memory was written outside its bounds");
    }
  }
  memory_.renew(reserved_);  // for the next block, of whichever kernel
}

void Run::run() {
  running = this;
  place.block_size = kernel_.block;
  place.grid_size = kernel_.grid;
  std::vector<unsigned> blocks(std::size_t(kernel_.grid.x) * kernel_.grid.y * kernel_.grid.z);
  for (std::size_t i = 0; i < blocks.size(); ++i) blocks[i] = unsigned(i);
  std::shuffle(blocks.begin(), blocks.end(), random_);
  for (std::size_t i = 0; i < blocks.size() && !failed_; ++i) {
    start_block(blocks[i]);
    run_block();
    end_block();
  }
  fibers_.join();
  running = nullptr;
}

std::uint64_t warp_operation(Operation operation, unsigned mask, std::uint64_t value, int from,
                             Source source) {
  Thread& t = running->current();
  if (!(mask >> (running->current_index() % 32) & 1)) {
    running->fail("a lane takes part in a warp operation whose mask leaves it out, at " +
                  text(source));
  }
  t.operation = operation;
  t.mask = mask;
  t.value = value;
  t.from = from;
  t.source = source;
  t.state = State::warp;
  running->pause();
  return t.result;
}

}  // namespace

const Place& here() { return running->place; }
void run(const Kernel& kernel) { Run(kernel).run(); }

void sync_threads(Source source) {
  if (running->drops(source)) return;
  Thread& t = running->current();
  char* const tag = running->barrier_tag();
  publish(tag);
  t.state = State::barrier;
  t.source = source;
  running->pause();
  observe(tag);
}

void sync_warp(unsigned mask, Source source) {
  if (running->drops(source)) return;
  char* const tag = running->warp_tag();
  publish(tag);
  warp_operation(Operation::sync, mask, 0, 0, source);
  observe(tag);
}

std::uint64_t exchange(unsigned mask, std::uint64_t value, int from_lane, Source source) {
  return warp_operation(Operation::exchange, mask, value, from_lane, source);
}

unsigned ballot(unsigned mask, bool vote, Source source) {
  return unsigned(warp_operation(Operation::ballot, mask, vote, 0, source));
}

void nanosleep(unsigned) {
  running->current().napping = true;
  running->pause();
}

// A fence before an atomic publishes what was written; a fence after it takes in what others did.
void fence(Source source) {
  if (running->drops(source)) return;
  Thread& t = running->current();
  for (std::size_t i = 0; i < std::min(t.observed_count, kRemembered); ++i) observe(t.observed[i]);
  t.observed_count = 0;
  t.fenced = true;
}

void before_atomic(const void* word) {
  if (running->chance(4)) running->pause();
  if (running->current().fenced) publish(word);
}

void after_atomic(const void* word) {
  Thread& t = running->current();
  t.observed[t.observed_count++ % kRemembered] = word;
}

void* shared_memory(const void* declaration, std::size_t bytes) {
  return running->shared(declaration, bytes);
}

void* dynamic_shared_memory() { return running->dynamic(); }

}  // namespace prophet::emulation
