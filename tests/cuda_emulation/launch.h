// Where the kernel emulator meets the fake runtime.
//
// A launch is a task of its stream: `body` runs on the stream's own thread, after everything that
// was queued there before it. While it runs, device memory may be read and written at the addresses
// that allocate gave out. Kernels of different streams run at the same time, and copies go on
// beside them; a kernel that waits for the host must give up the processor now and then
// (std::this_thread::yield or a short sleep), and stop waiting when device_lost().
//
// A stream that captures keeps `body` and runs it again at every launch of the graph, so it must be
// callable more than once and own its arguments.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace prophet::emulation {

struct Launch {
  const char* kernel = "";         // its name, for messages; must outlive the program
  unsigned threads = 1;            // of a block; more than 1024 is refused
  std::size_t shared_bytes = 0;    // dynamic; above 48 KiB only by cudaFuncSetAttribute
  const void* function = nullptr;  // the kernel, as cudaFuncSetAttribute knows it
  std::function<void()> body;
};

// Queues one kernel. Like a launch, it returns nothing: an error (too many threads, too much shared
// memory, a bad stream, one injected as "cudaLaunchKernel") is what cudaGetLastError gives next.
void launch(void* stream, Launch kernel);

// What a kernel finds wrong with itself (a divergent barrier, a guard byte overwritten, an address
// out of bounds): the device is lost, as after cudaErrorLaunchFailure, and `sentence` is printed.
void kernel_failed(const char* kernel, const char* sentence);

// Nothing that the device does counts any more.
bool device_lost();

// Whether a kernel could read all these bytes on a real device: device memory or page-locked.
bool reachable(const void* address, std::size_t bytes);

// The seed of the kernels' schedules. A launch's own is made of it and of how many went before.
std::uint64_t schedule_seed();

}  // namespace prophet::emulation
