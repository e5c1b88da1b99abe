// Route and seal; see hit_path.h.
#include "core/types.h"
#include "kernels/cuda_dialect.cuh"
#include "kernels/hit_path.h"
#include "kernels/launchers_cuda.h"

namespace prophet {
namespace {

constexpr int kRouteThreads = 128;
constexpr int kSealThreads = 256;
constexpr unsigned kPause = 200;  // nanoseconds between two looks at mapped memory

__device__ __forceinline__ float load_element(std::uint8_t type, const void* from, std::size_t i) {
  if (type == static_cast<std::uint8_t>(DType::f32)) return static_cast<const float*>(from)[i];
  if (type == static_cast<std::uint8_t>(DType::f16)) {
    return __half2float(static_cast<const __half*>(from)[i]);
  }
  return __bfloat162float(static_cast<const __nv_bfloat16*>(from)[i]);
}

__device__ __forceinline__ void store_nan(std::uint8_t type, void* to, std::size_t i) {
  if (type == static_cast<std::uint8_t>(DType::f32)) {
    static_cast<std::uint32_t*>(to)[i] = 0x7fffffffu;
  } else {
    static_cast<std::uint16_t*>(to)[i] = 0x7fffu;  // of both 16-bit types
  }
}

// Updates in their order, by one thread: a later one for the same expert wins. `row` is the running
// call's part of the table: gaps of `call` are filled, nothing is taken from it.
__device__ __forceinline__ void take_updates(const HitPath& path, std::uint64_t until,
                                             std::uint64_t row, bool fill) {
  HitPathCounters& counters = *path.counters;
  if (counters.taken == until) return;
  for (std::uint64_t next = counters.taken; next < until; ++next) {
    const HitPathUpdate& update = path.updates[next & (path.update_places - 1)];
    const std::uint64_t index = load_mapped(&update.index);
    const CudaExpert expert = {load_mapped(&update.expert.gate), load_mapped(&update.expert.up),
                               load_mapped(&update.expert.down)};
    path.table[index] = expert;
    if (fill && index >= row && index < row + path.experts &&
        path.call[index - row].up == nullptr) {
      path.call[index - row] = expert;
    }
  }
  counters.taken = until;
  store_mapped(&path.mail->taken, until);
}

// The host has read all but `report_places - 1` reports.
__device__ __forceinline__ void wait_for_a_place(const HitPath& path, std::uint64_t call) {
  HitPathCounters& counters = *path.counters;
  while (call > counters.consumed + path.report_places) {
    counters.consumed = load_mapped(&path.mail->consumed);
    if (call > counters.consumed + path.report_places) __nanosleep(kPause);
  }
}

__device__ __forceinline__ void stand(const HitPath& path, std::uint64_t call, std::uint64_t row) {
  while (true) {
    const bool answered = load_mapped(&path.mail->answered) >= call;
    take_updates(path, load_mapped(&path.mail->published), row, true);
    if (answered) break;
    __nanosleep(kPause);
  }
  path.counters->given_up = load_mapped(&path.mail->given_up) >= call ? call : 0;
}

__global__ void __launch_bounds__(kRouteThreads) route(HitPath path, HitPathCall call) {
  PROPHET_SHARED(std::uint64_t, number, 1);
  PROPHET_SHARED(std::int32_t, missed, kRouteThreads);
  HitPathCounters& counters = *path.counters;
  const int thread = threadIdx.x;
  const std::uint64_t row = std::uint64_t(call.layer) * path.experts;
  if (thread == 0) {
    take_updates(path, load_mapped(&path.mail->published), row, false);
    if (counters.acknowledged != counters.taken) {
      counters.acknowledged = counters.taken;
      store_mapped(&path.mail->acknowledged, counters.acknowledged);
    }
    if (call.tokens > 0) {
      number[0] = ++counters.calls;
      counters.given_up = 0;
      wait_for_a_place(path, number[0]);
    }
  }
  __syncthreads();
  if (call.tokens == 0) return;
  for (std::int32_t e = thread; e < path.experts; e += kRouteThreads) {
    path.call[e] = path.table[row + e];
  }

  std::byte* report = path.reports + (number[0] & (path.report_places - 1)) * path.report_bytes;
  auto* head = reinterpret_cast<HitPathReport*>(report);
  auto* ids = reinterpret_cast<std::int32_t*>(report + path.ids);
  auto* found = reinterpret_cast<std::int32_t*>(report + path.found);
  auto* weights = reinterpret_cast<float*>(report + path.weights);
  auto* hidden = reinterpret_cast<float*>(report + path.hidden);
  const std::int32_t pairs = call.tokens * call.top_k;
  std::int32_t missing = 0;
  for (std::int32_t i = thread; i < pairs; i += kRouteThreads) {
    const std::int64_t id = call.ids[i];
    const float weight = load_element(call.routing_type, call.routing, i);
    const bool asked = id >= 0 && id < path.experts && weight != 0.0f;
    const bool here = !asked || path.table[row + id].up != nullptr;
    ids[i] = id < 0 || id >= path.experts ? path.experts : static_cast<std::int32_t>(id);
    found[i] = here;
    weights[i] = weight;
    missing += !here;
  }
  if (path.hidden_width == call.hidden) {
    const std::size_t last = std::size_t(call.tokens - 1) * call.hidden;
    for (std::int32_t h = thread; h < call.hidden; h += kRouteThreads) {
      hidden[h] = load_element(call.io, call.x, last + h);
    }
  }
  if (call.forecasts != 0) {
    auto* forecasts = reinterpret_cast<float*>(report + path.forecasts);
    for (std::int32_t i = thread; i < path.forecast_floats; i += kRouteThreads) {
      forecasts[i] = path.forecast[i];
    }
  }
  missed[thread] = missing;
  __threadfence_system();
  __syncthreads();
  if (thread != 0) return;
  std::int32_t all = 0;
  for (int t = 0; t < kRouteThreads; ++t) all += missed[t];
  head->layer = call.layer;
  head->tokens = call.tokens;
  head->top_k = call.top_k;
  head->missing = all;
  head->forecasts = call.forecasts;
  store_mapped(&head->call, number[0]);
  if (all > 0) stand(path, number[0], row);
}

__global__ void __launch_bounds__(kSealThreads) seal(HitPath path, HitPathCall call) {
  if (path.counters->given_up == 0) return;
  const std::size_t n = std::size_t(call.tokens) * call.hidden;
  for (std::size_t i = threadIdx.x; i < n; i += kSealThreads) {
    store_nan(call.io, call.out, i);
  }
}

bool possible(const HitPath& path, const HitPathCall& call) {
  return path.experts > 0 && path.update_places > 0 && path.report_places > 0 && call.tokens >= 0 &&
         call.top_k >= 0 && std::int64_t(call.tokens) * call.top_k <= path.pairs;
}

}  // namespace

int cuda_route(const HitPath* path, const HitPathCall* call, void* stream) {
  if (!possible(*path, *call)) return 1;
  return PROPHET_LAUNCH(route, dim3(1), dim3(kRouteThreads), 0, stream, *path, *call);
}

int cuda_seal(const HitPath* path, const HitPathCall* call, void* stream) {
  if (!possible(*path, *call)) return 1;
  return PROPHET_LAUNCH(seal, dim3(1), dim3(kSealThreads), 0, stream, *path, *call);
}

}  // namespace prophet
