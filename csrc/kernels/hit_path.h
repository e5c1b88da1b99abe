// The hit path: a layer whose experts are all in fast memory is served without the host.
//
// A table on the device says where each expert stands. Per layer call three things are queued on
// one stream: `route`, the experts' arithmetic over `call` (cuda_kernels.h), `seal`.
//
// Where the device forecasts too, `predict` goes first, and `route` reports what it left.
//
//  route  1. takes what the host has published from the ring of updates into the table, and
//            acknowledges it: no later call finds what is gone, and all earlier ones are over;
//         2. copies the layer's row of the table to `call`, finds which experts of the call are
//            missing, and reports ids, weights and misses to a mapped ring that the host polls;
//         3. only where one is missing stands until the host has answered that call, taking
//            updates as they come. They fill gaps of `call` and take nothing from it.
//  seal   makes the output NaN where the host gave the call up (an expert could not be read).
//
// Everything that changes from call to call is counted on the device, so the three can be captured
// into a graph and replayed. One stream at a time: whoever uses another lets it wait first.
//
// When may the host overwrite a slot? Its removal is an update with a number. Either that number
// has been acknowledged, or the stream stands in `route` and no expert found there by the running
// call is in the slot.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda_kernels.h"

namespace prophet {

// Words in mapped memory, each in a cache line of its own. All count from 0 and only grow.
struct HitPathMail {
  // The host writes:
  alignas(64) std::uint64_t published;  // updates written to the ring
  alignas(64) std::uint64_t answered;   // calls that may go on; the first is number 1
  std::uint64_t given_up;               // the last call that failed; written before `answered`
  alignas(64) std::uint64_t consumed;   // reports read
  // The device writes:
  alignas(64) std::uint64_t taken;         // updates whose place in the ring is free again
  alignas(64) std::uint64_t acknowledged;  // updates that every later call has seen
};

struct HitPathUpdate {
  std::uint64_t index;  // layer * experts + expert
  CudaExpert expert;    // up null: gone
};

// One layer call, followed by ids, found and weights, [tokens, top_k] each, what the router read
// for the last token, [hidden_width], and what was forecast, [forecast_floats]. An id of another
// rank is `experts`; pairs that add nothing (those, and weight zero) count as found.
struct HitPathReport {
  std::uint64_t call;                          // its number, written last
  std::int32_t layer, tokens, top_k, missing;  // missing: pairs
  std::int32_t forecasts;                      // 0: none were made
};

struct HitPathCounters {  // on the device
  std::uint64_t calls, taken, acknowledged, consumed, given_up;
};

// What stays from call to call. Addresses as the device sees them.
struct HitPath {
  HitPathMail* mail;
  HitPathUpdate* updates;     // [update_places], a power of two
  std::byte* reports;         // [report_places], a power of two, of report_bytes
  CudaExpert* table;          // [layers, experts], device memory
  CudaExpert* call;           // [experts], device memory
  HitPathCounters* counters;  // device memory, zero at first
  std::uint64_t update_places, report_places, report_bytes;
  const float* forecast;  // device memory: what `predict` left for the call (cuda_kernels.h)
  // Where the arrays of a report begin: int32, int32, float, float, float.
  std::uint32_t ids, found, weights, hidden, forecasts;
  std::int32_t experts;
  std::int32_t pairs;         // room of a report
  std::int32_t hidden_width;  // of the predictor; 0: none
  std::int32_t forecast_floats;
};

struct HitPathCall {
  std::int32_t layer, tokens, top_k;  // tokens 0: takes updates, and nothing else
  std::int32_t hidden;                // elements of a row of x and out
  std::uint8_t io, routing_type;      // DType
  std::uint8_t forecasts;             // 1: `predict` stands before it on the stream
  const void* x;                      // [tokens, hidden]; read where hidden_width is hidden
  const std::int64_t* ids;            // [tokens, top_k]
  const void* routing;                // [tokens, top_k]
  void* out;                          // [tokens, hidden]
};

}  // namespace prophet
