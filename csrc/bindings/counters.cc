#include "bindings/counters.h"

namespace py = pybind11;

namespace prophet {

py::dict to_dict(const Counters& c) {
  py::dict out;
#define PROPHET_COUNTER(name) out[#name] = c.name
  PROPHET_COUNTER(bytes_moved);
  PROPHET_COUNTER(bytes_demand);
  PROPHET_COUNTER(bytes_prefetch_used);
  PROPHET_COUNTER(bytes_prefetch_late);
  PROPHET_COUNTER(bytes_prefetch_wasted);
  PROPHET_COUNTER(bytes_prefetch_unused);
  PROPHET_COUNTER(bytes_cancelled);
  PROPHET_COUNTER(bytes_staged);
  PROPHET_COUNTER(bytes_found_staged);
  PROPHET_COUNTER(hits_resident);
  PROPHET_COUNTER(hits_in_flight);
  PROPHET_COUNTER(misses);
  PROPHET_COUNTER(evictions);
  PROPHET_COUNTER(evicted_before_use);
  PROPHET_COUNTER(layer_steps);
  PROPHET_COUNTER(waves);
  PROPHET_COUNTER(reads);
  PROPHET_COUNTER(reads_failed);
  PROPHET_COUNTER(expert_bytes_routed);
  PROPHET_COUNTER(streamed_steps);
  PROPHET_COUNTER(foresight_steps);
  PROPHET_COUNTER(foresight_held_steps);
  PROPHET_COUNTER(prefetch_held_steps);
  PROPHET_COUNTER(stall_ns);
  PROPHET_COUNTER(compute_ns);
  PROPHET_COUNTER(busy_ns);
  PROPHET_COUNTER(now_ns);
  PROPHET_COUNTER(foresight_ns);
#undef PROPHET_COUNTER
  return out;
}

}  // namespace prophet
