// Backends with one mistake: tables of the runtime that leave out, or do elsewhere, one call that
// orders copies and kernels. A test that cannot tell them from the original proves nothing.
#pragma once

#include <array>

#include "device/cuda/cuda_api.h"

namespace prophet::testing_device {

// What the mutants need to know; the model is one, and so is the run under way.
struct MutantRun {
  void* compute = nullptr;  // the stream of kernels
  void* other = nullptr;    // one that has nothing to do with anything
};
inline MutantRun now;
inline CudaApi original;

inline CudaApi no_wait_of_compute() {
  CudaApi api = original;
  api.stream_wait_event = [](void* stream, void* event) {
    return stream == now.compute ? 0 : original.stream_wait_event(stream, event);
  };
  return api;
}
inline CudaApi no_wait_of_copies() {
  CudaApi api = original;
  api.stream_wait_event = [](void* stream, void* event) {
    return stream == now.compute ? original.stream_wait_event(stream, event) : 0;
  };
  return api;
}
inline CudaApi copies_on_another_stream() {
  CudaApi api = original;
  api.copy_async = [](void* to, const void* from, std::size_t bytes, CudaCopy kind, void*) {
    return original.copy_async(to, from, bytes, kind, now.other);
  };
  return api;
}
inline CudaApi no_event_of_the_reader() {
  CudaApi api = original;
  api.event_record = [](void* event, void* stream) {
    return stream == now.compute ? 0 : original.event_record(event, stream);
  };
  return api;
}
inline CudaApi no_event_of_the_copy() {
  CudaApi api = original;
  api.event_record = [](void* event, void* stream) {
    return stream == now.compute ? original.event_record(event, stream) : 0;
  };
  return api;
}
inline CudaApi slots_free_too_early() {  // the device is said to be done when it is not
  CudaApi api = original;
  api.event_query = [](void*) { return 0; };
  return api;
}

struct Mutant {
  const char* name;
  CudaApi (*make)();
};

constexpr std::array kMutants{Mutant{"ComputeDoesNotWaitForTheCopy", no_wait_of_compute},
                              Mutant{"TheCopyDoesNotWaitForTheReader", no_wait_of_copies},
                              Mutant{"TheCopyIsOnAnotherStream", copies_on_another_stream},
                              Mutant{"TheReadersEventIsMissing", no_event_of_the_reader},
                              Mutant{"TheCopysEventIsMissing", no_event_of_the_copy},
                              Mutant{"TheSlotIsReleasedTooEarly", slots_free_too_early}};

}  // namespace prophet::testing_device
