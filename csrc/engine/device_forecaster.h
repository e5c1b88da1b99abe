// The learned forecaster on the device: one launch per layer step of the hit path
// (kernels/hit_path.h), with the history that the host's predictor would have had.
//
// What has been seen is in one place at a time. `take` brings it to the device when layers begin to
// be queued there, `give` back when the host hears of a layer first again (leases, long prefills,
// several requests). The predictor must be idle in both, and nothing queued.
#pragma once

#include <cstdint>

#include "engine/device_memory.h"
#include "engine/engine.h"
#include "kernels/hit_path.h"
#include "predict/device_bank.h"

namespace prophet {

class DeviceForecaster {
 public:
  // `hidden`: width of the rows that layers read; 0: not to be looked at. Throws InvalidArgument
  // where the kernel cannot run this network, DeviceError.
  DeviceForecaster(const DeviceTables& tables, BankPredictor& bank, std::int32_t hidden);

  // What a launch leaves: [2 + layers ahead, experts] (Glimpse::told), in device memory.
  std::int32_t floats() const { return (2 + bank_.ahead) * bank_.experts; }
  const float* forecasts() const { return out_.as<float>(); }

  bool here() const { return here_; }
  void take(void* stream);  // queued, not waited for
  void give(void* stream);  // waits for the stream

  // Takes in what the router chose in a call, and forecasts; a cudaError_t.
  int queue(const HitPathCall& call, void* stream) const;

 private:
  const CudaApi& api_;
  const CudaKernels& kernels_;
  BankPredictor& predictor_;
  const DeviceBank layout_;
  DeviceMemory weights_, state_, out_;
  PinnedMemory history_;  // on its way
  CudaBank bank_{};
  CudaBankState memory_{};
  const std::int32_t hidden_;
  bool here_ = false;
};

}  // namespace prophet
