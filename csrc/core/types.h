// The words every room shares: which expert, where on disk, how many bytes, how long.
//
// Units: sizes and offsets are bytes, times are nanoseconds of Backend::now().
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <string>

namespace prophet {

using Nanos = std::int64_t;

// One routed expert: `layer` counts MoE layers only, from 0 in forward order.
struct ExpertKey {
  std::int32_t layer = 0;
  std::int32_t expert = 0;
  auto operator<=>(const ExpertKey&) const = default;
};

// What is offloaded. Every MoE layer has the same number of routed experts.
struct Geometry {
  std::int32_t layers = 0;             // MoE layers
  std::int32_t experts_per_layer = 0;  // routed experts of one layer
  std::int32_t top_k = 0;              // experts one token uses in one layer

  std::int32_t total() const { return layers * experts_per_layer; }
  std::int32_t index(ExpertKey key) const { return key.layer * experts_per_layer + key.expert; }
  ExpertKey key(std::int32_t index) const {
    return {index / experts_per_layer, index % experts_per_layer};
  }
  bool contains(ExpertKey key) const {
    return key.layer >= 0 && key.layer < layers && key.expert >= 0 &&
           key.expert < experts_per_layer;
  }
};

// Element type of weights and activations; all arithmetic accumulates in float32.
enum class DType : std::uint8_t { f32, f16, bf16 };

constexpr std::size_t size_of(DType type) { return type == DType::f32 ? 4 : 2; }

// A predictor's word: needed with probability p, `horizon` layers after the layer observed last.
struct Forecast {
  ExpertKey key;
  float p = 0;
  std::int32_t horizon = 0;
};

// How far a wish travels: into fast memory, or no further than the staging tier below it.
enum class Reach : std::uint8_t { fast, staging };

// A wish to have an expert before the router asks. A plan is a whole set of them.
struct Prefetch {
  ExpertKey key;
  float confidence = 0;       // calibrated probability that it will be needed
  std::int64_t deadline = 0;  // layer step (tick) at which it would be needed
  Reach reach = Reach::fast;
};

// A file as it was when it was opened. A reader compares size and mtime_ns before it
// trusts later reads: weights of a file that changed are refused, never used.
struct FileInfo {
  std::string path;
  std::uint64_t size = 0;
  std::int64_t mtime_ns = 0;
};

// A run of bytes of one file and where it lands in a slot. `file` indexes the list of
// files handed to Backend::open. When made by a store, `offset`, `bytes` and `at` are
// multiples of the store's alignment, except that offset + bytes may pass the end of the
// file by less than one alignment unit: the read then ends at the end of the file.
struct Extent {
  std::int32_t file = 0;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  std::uint64_t at = 0;  // offset inside the slot
};

}  // namespace prophet
