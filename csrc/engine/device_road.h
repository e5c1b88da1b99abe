// What Engine::forward keeps on a device between calls: copies of a host batch, tables of experts'
// addresses, and the leases of work that is queued but not done.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "engine/device_memory.h"
#include "engine/engine.h"

namespace prophet {

struct Engine::DeviceRoad {
  // Layers that may be queued ahead of the device; each has its own page-locked table.
  static constexpr std::size_t kQueued = 16;

  explicit DeviceRoad(const DeviceTables& tables)
      : api(*tables.api),
        kernels(*tables.kernels),
        device(tables.device),
        own((use(), api)),
        reading(api),
        order(api),
        arrays(api),
        table(api),
        scratch(api),
        staging(api),
        addresses(api) {}

  void use() const;  // this thread calls the device
  // The stream of a batch; work of another stream that shares these buffers goes first.
  void* enter(const LayerBatch& batch);
  // Host and device views of a batch, whichever way it came. The host's x is its last row alone.
  void bring(const LayerBatch& batch, std::size_t hidden, LayerBatch& host, LayerBatch& there);
  void give_back(const LayerBatch& batch, const LayerBatch& there, std::size_t hidden);
  // The kernels' call for tokens [first, last) of a batch, but for its table.
  CudaFfnCall call(const FfnShape& shape, std::int32_t experts, const LayerBatch& there,
                   std::int32_t first, std::int32_t last);
  // Queues the experts of tokens [first, last) whose addresses are in table number `index`.
  void compute(const FfnShape& shape, std::int32_t experts, const LayerBatch& there,
               std::int32_t first, std::int32_t last, std::size_t index);
  CudaExpert* host_table(std::size_t index, std::int32_t experts);

  const CudaApi& api;
  const CudaKernels& kernels;
  const int device;
  DeviceStream own;      // of batches in host memory
  DeviceStream reading;  // of Engine::read
  DeviceEvent order;
  void* stream = nullptr;  // of the last call

  DeviceMemory arrays;   // x, ids, weights, out of a batch in host memory
  DeviceMemory table;    // [experts] CudaExpert, in stream order
  DeviceMemory scratch;  // of the kernels
  PinnedMemory staging;
  PinnedMemory addresses;  // [kQueued, experts] CudaExpert

  struct Passing {
    std::unique_ptr<Lease> lease;
    Ticket ticket = 0;  // done when the device has read the experts
  };
  std::deque<Passing> passing;  // oldest first; the engine's lock guards it
  std::vector<std::unique_ptr<Lease>> spare;
  std::size_t turn = 0;  // of the tables
};

}  // namespace prophet
