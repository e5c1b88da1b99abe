// Engine::forward on a device: experts are leased and brought as on the CPU, computed where they
// stand, and leased until the device has passed.
#include <algorithm>
#include <cstring>
#include <string>

#include "core/error.h"
#include "engine/device_road.h"
#include "engine/scratch.h"

namespace prophet {
namespace {

constexpr std::size_t aligned(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

CudaWeights weights_of(DType type) {
  switch (type) {
    case DType::f32:
      return CudaWeights::f32;
    case DType::f16:
      return CudaWeights::f16;
    case DType::bf16:
      return CudaWeights::bf16;
  }
  throw InvalidArgument("experts of this element type have no kernels on a GPU");
}

// Where the arrays of a batch lie behind one another.
struct Places {
  std::size_t x, ids, weights, out, end;
  Places(const LayerBatch& batch, std::size_t hidden) {
    const std::size_t pairs = std::size_t(batch.tokens) * batch.top_k;
    const std::size_t row = hidden * size_of(batch.dtype);
    x = 0;
    ids = x + aligned(batch.tokens * row);
    weights = ids + aligned(pairs * sizeof(std::int64_t));
    out = weights + aligned(pairs * size_of(batch.weights_dtype));
    end = out + aligned(batch.tokens * row);
  }
};

}  // namespace

void Engine::DeviceRoad::use() const {
  cuda_check(api, api.use_device(device), "choosing GPU " + std::to_string(device));
}

void* Engine::DeviceRoad::enter(const LayerBatch& batch) {
  void* const wanted = batch.on_device ? reinterpret_cast<void*>(batch.stream) : own.get();
  if (wanted == stream) return wanted;
  int of = device;
  const int code = api.stream_device(wanted, &of);
  if (code != kCudaNotSupported) cuda_check(api, code, "asking a stream for its GPU");
  if (of != device) {
    throw InvalidArgument("the current stream belongs to GPU " + std::to_string(of) +
                          ", the experts are on GPU " + std::to_string(device) +
                          ": make that the current device (torch.cuda.device) first");
  }
  if (stream != nullptr) {
    cuda_check(api, api.event_record(order.get(), stream), "recording an event");
    cuda_check(api, api.stream_wait_event(wanted, order.get()), "letting a stream wait");
  }
  stream = wanted;
  return wanted;
}

void Engine::DeviceRoad::bring(const LayerBatch& batch, std::size_t hidden, LayerBatch& host,
                               LayerBatch& there) {
  const Places at(batch, hidden);
  const std::size_t pairs = std::size_t(batch.tokens) * batch.top_k;
  const std::size_t row = hidden * size_of(batch.dtype), rows = batch.tokens * row;
  const std::size_t id_bytes = pairs * sizeof(std::int64_t);
  const std::size_t weight_bytes = pairs * size_of(batch.weights_dtype);
  staging.grow(at.end, "a layer's arrays");
  host = there = batch;
  if (batch.on_device) {
    const auto fetch = [&](std::size_t place, const void* from, std::size_t bytes) {
      cuda_check(api,
                 api.copy_async(staging.data() + place, from, bytes, CudaCopy::to_host, stream),
                 "copying what the router said to the host");
    };
    fetch(at.ids, batch.ids, id_bytes);
    fetch(at.weights, batch.weights, weight_bytes);
    fetch(at.x, static_cast<const std::byte*>(batch.x) + rows - row, row);
    cuda_check(api, api.stream_synchronize(stream), "waiting for what the router said");
    host.x = staging.data() + at.x;
    host.ids = reinterpret_cast<const std::int64_t*>(staging.data() + at.ids);
    host.weights = staging.data() + at.weights;
    return;
  }
  arrays.grow(at.end, "a layer's arrays");
  std::memcpy(staging.data() + at.x, batch.x, rows);
  std::memcpy(staging.data() + at.ids, batch.ids, id_bytes);
  std::memcpy(staging.data() + at.weights, batch.weights, weight_bytes);
  cuda_check(api,
             api.copy_async(arrays.data(), staging.data(), at.out, CudaCopy::to_device, stream),
             "copying a layer's input to the GPU");
  there.x = arrays.data() + at.x;
  there.ids = reinterpret_cast<const std::int64_t*>(arrays.data() + at.ids);
  there.weights = arrays.data() + at.weights;
  there.out = arrays.data() + at.out;
  host.x = static_cast<const std::byte*>(batch.x) + rows - row;
}

void Engine::DeviceRoad::give_back(const LayerBatch& batch, const LayerBatch& there,
                                   std::size_t hidden) {
  if (batch.on_device) return;
  const Places at(batch, hidden);
  const std::size_t bytes = batch.tokens * hidden * size_of(batch.dtype);
  cuda_check(api,
             api.copy_async(staging.data() + at.out, there.out, bytes, CudaCopy::to_host, stream),
             "copying a layer's output to the host");
  cuda_check(api, api.stream_synchronize(stream), "waiting for a layer's output");
  std::memcpy(batch.out, staging.data() + at.out, bytes);
}

CudaExpert* Engine::DeviceRoad::host_table(std::size_t index, std::int32_t experts) {
  addresses.grow(kQueued * experts * sizeof(CudaExpert), "tables of experts");
  return addresses.as<CudaExpert>() + index * experts;
}

CudaFfnCall Engine::DeviceRoad::call(const FfnShape& shape, std::int32_t experts,
                                     const LayerBatch& there, std::int32_t first,
                                     std::int32_t last) {
  const std::size_t k = there.top_k, row = shape.hidden * size_of(there.dtype);
  CudaFfnCall call{};
  call.tokens = last - first;
  call.top_k = there.top_k;
  call.experts = experts;
  call.hidden = shape.hidden;
  call.inter = shape.inter;
  call.weights = weights_of(shape.weights);
  call.io = static_cast<std::uint8_t>(there.dtype);
  call.routing_type = static_cast<std::uint8_t>(there.weights_dtype);
  call.activation = static_cast<std::uint8_t>(shape.activation);
  call.has_gate = shape.has_gate;
  call.x = static_cast<const std::byte*>(there.x) + first * row;
  call.ids = there.ids + first * k;
  call.routing =
      static_cast<const std::byte*>(there.weights) + first * k * size_of(there.weights_dtype);
  call.out = static_cast<std::byte*>(there.out) + first * row;
  scratch.grow(kernels.expert_ffn_scratch_bytes(&call), "expert arithmetic");
  call.scratch = scratch.data();
  call.scratch_bytes = scratch.size();
  return call;
}

void Engine::DeviceRoad::compute(const FfnShape& shape, std::int32_t experts,
                                 const LayerBatch& there, std::int32_t first, std::int32_t last,
                                 std::size_t index) {
  const std::size_t table_bytes = experts * sizeof(CudaExpert);
  table.grow(table_bytes, "the table of experts");
  cuda_check(api,
             api.copy_async(table.data(), host_table(index, experts), table_bytes,
                            CudaCopy::to_device, stream),
             "copying the table of experts to the GPU");
  CudaFfnCall experts_call = call(shape, experts, there, first, last);
  experts_call.table = table.data();
  cuda_check(api, kernels.expert_ffn(&experts_call, stream), "computing experts on the GPU");
}

void Engine::read(std::uint64_t at, std::span<std::byte> to) const {
  if (at > arena_.size() || to.size() > arena_.size() - at) {
    throw InvalidArgument(std::to_string(to.size()) + " bytes from byte " + std::to_string(at) +
                          " on are not in the arena of " + std::to_string(arena_.size()) +
                          " bytes");
  }
  if (!device_) {
    std::memcpy(to.data(), arena_.data() + at, to.size());
    return;
  }
  const DeviceRoad& d = *device_;
  d.use();
  cuda_check(d.api,
             d.api.copy_async(to.data(), arena_.data() + at, to.size(), CudaCopy::to_host,
                              d.reading.get()),
             "copying an expert to the host");
  cuda_check(d.api, d.api.stream_synchronize(d.reading.get()), "waiting for an expert");
}

void Engine::release(std::unique_ptr<Lease> lease, Stream stream) {
  if (!device_) return release(*lease);
  device_->use();
  const Ticket ticket = backend_->mark(stream);
  Lock lock(mutex_);
  if (lease->live) device_->passing.push_back({std::move(lease), ticket});
}

void Engine::release_passed() {
  if (!device_) return;
  while (!device_->passing.empty()) {
    DeviceRoad::Passing& oldest = device_->passing.front();
    try {
      if (!backend_->poll(oldest.ticket)) return;
    } catch (const Error&) {
      // The device is lost: nothing reads any more, and the next call to it says so.
    }
    release_locked(*oldest.lease);
    device_->spare.push_back(std::move(oldest.lease));
    device_->passing.pop_front();
  }
}

bool Engine::wait_for_device(Lock& lock) {
  if (!device_ || device_->passing.empty()) return false;
  const Ticket ticket = device_->passing.front().ticket;
  lock.unlock();
  backend_->wait_any({&ticket, 1});
  lock.lock();
  release_passed();
  return true;
}

void Engine::serve_wave_on_device(std::int32_t layer, const LayerBatch& batch, std::int32_t first,
                                  std::int32_t last) {
  Scratch& s = *scratch_;
  DeviceRoad& d = *device_;
  const std::int32_t experts = geometry().experts_per_layer;
  Lock lock(mutex_);
  const Nanos now = backend_->now();
  record(EventKind::wave, now, now, {layer, -1});
  while (d.passing.size() >= DeviceRoad::kQueued && wait_for_device(lock)) {
  }
  if (d.spare.empty()) d.spare.push_back(std::make_unique<Lease>());
  std::unique_ptr<Lease> lease = std::move(d.spare.back());
  d.spare.pop_back();
  try {
    lease_locked(lock, layer, s.experts, *lease);
    land(lock, *lease);
    const std::size_t index = d.turn++ % DeviceRoad::kQueued;
    CudaExpert* table = d.host_table(index, experts);
    std::fill_n(table, experts, CudaExpert{});
    for (const Lease::Entry& entry : lease->entries) {
      table[entry.key.expert] = addresses(entry.key, entry.slot);
    }
    lock.unlock();
    d.compute(ffn_.shape, experts, batch, first, last, index);
    const Ticket ticket = backend_->mark(reinterpret_cast<Stream>(d.stream));
    lock.lock();
    d.passing.push_back({std::move(lease), ticket});
  } catch (...) {
    if (!lock.owns_lock()) lock.lock();
    release_locked(*lease);
    d.spare.push_back(std::move(lease));
    throw;
  }
}

void Engine::forward_on_device(std::int32_t layer, const LayerBatch& batch) {
  DeviceRoad& d = *device_;
  const std::size_t hidden = ffn_.shape.hidden;
  if (fits_hit_path(layer, batch)) return forward_by_hits(layer, batch);
  if (batch.captured) {
    throw StateError(
        "only a decode-sized batch that the slots always hold can be captured into a "
        "graph: give fewer tokens, or more slots");
  }
  quiesce();
  d.use();
  d.enter(batch);
  const Nanos begin = backend_->now();
  LayerBatch host, there;
  d.bring(batch, hidden, host, there);
  begin_layer(layer, host, host.x, host.x ? 1 : 0);
  Nanos computing = begin;
  for (std::int32_t first = 0, last; first < batch.tokens; first = last) {
    last = plan_wave(layer, host, first);
    serve_wave_on_device(layer, there, first, last);
    computing = backend_->now();
  }
  d.give_back(batch, there, hidden);
  Lock lock(mutex_);
  const Nanos end = backend_->now();
  // What the host can see of it: from the last wave's launch until its result was here.
  if (!batch.on_device) record(EventKind::compute, computing, end, {layer, -1});
  record(EventKind::layer_step, begin, end, {layer, -1});
}

}  // namespace prophet
