// A CUDA backend over the model, with three files of odd sizes behind it.
#pragma once

#include <atomic>
#include <cerrno>
#include <memory>
#include <string>
#include <vector>

#include "device/backend_conformance.h"
#include "device/cuda/cuda_backend.h"
#include "device/cuda_model.h"
#include "device/temp_files.h"

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

class CudaRig final : public BackendRig {
 public:
  explicit CudaRig(CudaOptions options, std::uint64_t seed = 1) : model_(seed) {
    paths_ = {files_.make("a", 0, (2 << 20) + 123), files_.make("b", 1, 1 << 20),
              files_.make("c", 2, 4096 * 5 + 1)};
    options.disk.faults = [this](std::uint64_t, Lane, const Extent& from) {
      return Fault{failing_ && from.file == 0 && from.offset == 0 ? EIO : 0};
    };
    if (options.api == nullptr) options.api = model_.api();
    backend_ = make_cuda_backend(options);
  }
  ~CudaRig() override { destroy(); }
  Backend& backend() override { return *backend_; }
  std::vector<std::string> paths() const override { return paths_; }
  // What the pool holds needs no file: the copy asks for more than any before.
  Ticket copy_that_fails(Lane lane, std::byte* to, const Extent& from) override {
    failing_ = true;
    const Ticket ticket = backend_->copy(lane, to, from);
    backend_->wait_any({&ticket, 1});
    failing_ = false;
    return ticket;
  }
  void destroy() override { backend_.reset(); }
  CudaModel& model() { return model_; }

 private:
  CudaModel model_;
  TempFiles files_;
  std::vector<std::string> paths_;
  std::atomic<bool> failing_{false};
  std::unique_ptr<Backend> backend_;
};

}  // namespace prophet::testing_device
