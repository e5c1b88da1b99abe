// What the parts of the fake runtime share.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>

#include "faults.h"
#include "handles.h"
#include "stream.h"

// At the head of an entry point: counts the call, and makes it fail where it is told to.
#define PROPHET_ENTER() \
  if (const cudaError_t told = prophet::emulation::enter(__func__)) return told
// The same for calls that give something back. Told to fail, or on a lost device, they do it all
// the same, so that what a clean-up forgot can be counted.
#define PROPHET_ENTER_TO_GIVE_BACK() const cudaError_t told = prophet::emulation::enter(__func__)

namespace prophet::emulation {

// Of the calling thread.
int current_device();
void set_current_device(int device);

Handles<Stream>& streams();
Handles<Event>& events();
Handles<Graph>& graphs();

// The stream behind a handle, the thread's device's default stream for 0; null: no such stream.
std::shared_ptr<Stream> stream_of(const void* handle);
// Waits for everything that any stream was given.
void wait_for_all();

// For calls that wait, allocate or free: an error, and a spoiled capture, when this thread
// captures.
cudaError_t not_while_capturing();
void capture_here(const std::shared_ptr<Stream>& stream);  // null: no more

}  // namespace prophet::emulation
