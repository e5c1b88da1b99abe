// A CUDA backend over the model, with three files of odd sizes behind it.
#pragma once

#include "device/cuda/cuda_backend.h"
#include "device/cuda_model.h"
#include "device/disk_rig.h"

namespace prophet::testing_device {

constexpr std::uint64_t kBlock = 64 << 10;

// Few and small blocks: copies are cut, the pool runs full.
inline CudaOptions small_pool(IoKind io = IoKind::pread, std::uint64_t blocks = kLeastBlocks) {
  CudaOptions options;
  options.block_bytes = kBlock;
  options.pool_bytes = blocks * kBlock;
  options.piece_bytes = 5 * kBlock;
  options.disk.io = io;
  return options;
}

class CudaRig final : public DiskRig {
 public:
  explicit CudaRig(CudaOptions options, std::uint64_t seed = 1) : model_(seed) {
    options.disk.faults = faults();
    if (options.api == nullptr) options.api = model_.api();
    backend_ = make_cuda_backend(options);
  }
  ~CudaRig() override { destroy(); }
  CudaModel& model() { return model_; }

 private:
  CudaModel model_;
};

}  // namespace prophet::testing_device
