// Streams, events and graphs as CUDA's entry points.
#include <algorithm>

#include "runtime.h"
#include "settings.h"

namespace prophet::emulation {
namespace {

thread_local std::weak_ptr<Stream> capturing_here;

std::shared_ptr<Stream> default_stream(int device) {
  static auto* mutex = new std::mutex;
  static auto* made = new std::map<int, std::shared_ptr<Stream>>;
  const Unordered hidden;
  const std::scoped_lock lock(*mutex);
  auto& stream = (*made)[device];
  if (!stream) stream = Stream::make(device, kPriorities - 1);
  return stream;
}

// A call that looks at a stream from outside is no part of a capture.
cudaError_t not_captured(Stream& stream) {
  if (const cudaError_t error = not_while_capturing()) return error;
  if (!stream.capturing()) return cudaSuccess;
  stream.spoil_capture();
  return leave(cudaErrorStreamCaptureUnsupported);
}

struct Latest {
  std::shared_ptr<Mark> mark;
  const void* captured;
};

Latest latest(Event& event) {
  const Unordered hidden;
  const std::scoped_lock lock(event.mutex);
  return {event.mark, event.captured};
}

}  // namespace

Handles<Stream>& streams() {
  static auto* kept = new Handles<Stream>;
  return *kept;
}

Handles<Event>& events() {
  static auto* kept = new Handles<Event>;
  return *kept;
}

Handles<Graph>& graphs() {
  static auto* kept = new Handles<Graph>;
  return *kept;
}

std::shared_ptr<Stream> stream_of(const void* handle) {
  if (!handle || handle == cudaStreamLegacy || handle == cudaStreamPerThread)
    return default_stream(current_device());
  return streams().find(handle);
}

void wait_for_all() {
  for (const auto& stream : all_streams()) stream->wait();
}

cudaError_t not_while_capturing() {
  const auto stream = capturing_here.lock();
  if (!stream || !stream->capturing()) return cudaSuccess;
  stream->spoil_capture();
  return leave(cudaErrorStreamCaptureUnsupported);
}

void capture_here(const std::shared_ptr<Stream>& stream) { capturing_here = stream; }

}  // namespace prophet::emulation

using namespace prophet::emulation;

extern "C" {

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* out, unsigned, int priority) {
  PROPHET_ENTER();
  const int urgency = std::clamp(priority + kPriorities - 1, 0, kPriorities - 1);
  *out = static_cast<cudaStream_t>(streams().add(Stream::make(current_device(), urgency)));
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  PROPHET_ENTER_TO_GIVE_BACK();
  const auto stream = streams().remove(handle);
  if (!stream) return leave(cudaErrorInvalidResourceHandle);
  stream->stop();
  return told;
}

cudaError_t cudaStreamGetDevice(cudaStream_t handle, int* device) {
  PROPHET_ENTER();
  const auto stream = stream_of(handle);
  if (!stream) return leave(cudaErrorInvalidResourceHandle);
  *device = stream->device();
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t handle) {
  PROPHET_ENTER();
  const auto stream = stream_of(handle);
  if (!stream) return leave(cudaErrorInvalidResourceHandle);
  if (const cudaError_t error = not_captured(*stream)) return error;
  return leave(stream->idle() ? cudaSuccess : cudaErrorNotReady);
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle) {
  if (device_lost()) wait_for_all();
  PROPHET_ENTER();
  const auto stream = stream_of(handle);
  if (!stream) return leave(cudaErrorInvalidResourceHandle);
  if (const cudaError_t error = not_captured(*stream)) return error;
  stream->wait();
  return leave(device_lost() ? last_error(false) : cudaSuccess);
}

cudaError_t cudaDeviceSynchronize() {
  if (device_lost()) wait_for_all();
  PROPHET_ENTER();
  if (const cudaError_t error = not_while_capturing()) return error;
  wait_for_all();
  return leave(device_lost() ? last_error(false) : cudaSuccess);
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event_handle, unsigned) {
  PROPHET_ENTER();
  const auto stream = stream_of(handle);
  const auto event = events().find(event_handle);
  if (!stream || !event) return leave(cudaErrorInvalidResourceHandle);
  const Latest record = latest(*event);
  const void* capture = stream->capturing();
  if (!record.mark && !record.captured) return cudaSuccess;
  if (capture != record.captured) {
    stream->spoil_capture();
    return leave(capture ? cudaErrorStreamCaptureIsolation : cudaErrorStreamCaptureUnsupported);
  }
  if (capture) return cudaSuccess;  // of one stream: in order anyway
  stream->push([mark = record.mark] { mark->wait(); });
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* out, unsigned flags) {
  PROPHET_ENTER();
  auto made = std::make_shared<Event>();
  made->device = current_device();
  made->timing = !(flags & cudaEventDisableTiming);
  *out = static_cast<cudaEvent_t>(events().add(std::move(made)));
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  PROPHET_ENTER_TO_GIVE_BACK();
  if (!events().remove(handle)) return leave(cudaErrorInvalidResourceHandle);
  return told;
}

cudaError_t cudaEventRecord(cudaEvent_t event_handle, cudaStream_t handle) {
  PROPHET_ENTER();
  const auto stream = stream_of(handle);
  const auto event = events().find(event_handle);
  if (!stream || !event || stream->device() != event->device)
    return leave(cudaErrorInvalidResourceHandle);
  const void* capture = stream->capturing();
  auto mark = capture ? nullptr : std::make_shared<Mark>();
  {
    const Unordered hidden;
    const std::scoped_lock lock(event->mutex);
    event->mark = mark;
    event->captured = capture;
  }
  if (mark) stream->push([mark] { mark->reach(); });
  return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t handle) {
  PROPHET_ENTER();
  const auto event = events().find(handle);
  if (!event) return leave(cudaErrorInvalidResourceHandle);
  if (const cudaError_t error = not_while_capturing()) return error;
  const Latest record = latest(*event);
  if (record.captured) return leave(cudaErrorCapturedEvent);
  return leave(!record.mark || record.mark->reached() ? cudaSuccess : cudaErrorNotReady);
}

cudaError_t cudaEventSynchronize(cudaEvent_t handle) {
  if (device_lost()) wait_for_all();
  PROPHET_ENTER();
  const auto event = events().find(handle);
  if (!event) return leave(cudaErrorInvalidResourceHandle);
  if (const cudaError_t error = not_while_capturing()) return error;
  const Latest record = latest(*event);
  if (record.captured) return leave(cudaErrorCapturedEvent);
  if (record.mark) record.mark->wait();
  return leave(device_lost() ? last_error(false) : cudaSuccess);
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t first, cudaEvent_t last) {
  PROPHET_ENTER();
  const auto from = events().find(first), to = events().find(last);
  if (!from || !to || !from->timing || !to->timing) return leave(cudaErrorInvalidResourceHandle);
  const auto begin = latest(*from).mark, end = latest(*to).mark;
  if (!begin || !end) return leave(cudaErrorInvalidResourceHandle);
  if (!begin->reached() || !end->reached()) return leave(cudaErrorNotReady);
  *milliseconds = std::chrono::duration<float, std::milli>(end->when() - begin->when()).count();
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode) {
  PROPHET_ENTER();
  const auto stream = streams().find(handle);  // the default stream cannot capture
  if (!stream) return leave(cudaErrorStreamCaptureUnsupported);
  if (const cudaError_t error = stream->begin_capture()) return leave(error);
  capture_here(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* out) {
  PROPHET_ENTER();
  const auto stream = streams().find(handle);
  if (!stream) return leave(cudaErrorInvalidResourceHandle);
  std::unique_ptr<Graph> made;
  const cudaError_t error = stream->end_capture(made);
  capture_here(nullptr);
  if (error) return leave(error);
  *out = static_cast<cudaGraph_t>(graphs().add(std::move(made)));
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* out, cudaGraph_t graph,
                                          unsigned long long) {
  PROPHET_ENTER();
  const auto recorded = graphs().find(graph);
  if (!recorded) return leave(cudaErrorInvalidValue);
  *out = static_cast<cudaGraphExec_t>(graphs().add(std::make_shared<Graph>(*recorded)));
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  PROPHET_ENTER_TO_GIVE_BACK();
  if (!graphs().remove(graph)) return leave(cudaErrorInvalidValue);
  return told;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t handle) {
  PROPHET_ENTER();
  const auto recorded = graphs().find(graph);
  const auto stream = stream_of(handle);
  if (!recorded || !stream) return leave(cudaErrorInvalidValue);
  if (stream->capturing()) {
    stream->spoil_capture();
    return leave(cudaErrorStreamCaptureUnsupported);
  }
  stream->replay(*recorded);
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  PROPHET_ENTER_TO_GIVE_BACK();
  if (!graphs().remove(graph)) return leave(cudaErrorInvalidValue);
  return told;
}

}  // extern "C"
