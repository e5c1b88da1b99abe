// The learned forecaster as a device's kernel reads it: CudaBank and CudaBankState of
// kernels/cuda_kernels.h, made of a BankNetwork. BankPredictor::save and load bring what it
// remembers there and back.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/cuda_kernels.h"
#include "predict/bank_network.h"

namespace prophet {

class DeviceBank {
 public:
  // Throws InvalidArgument where the network has parts or inputs that the kernel lacks.
  explicit DeviceBank(const BankNetwork& network);

  // All weights in one run; every array begins at a multiple of 256 bytes.
  const std::vector<std::byte>& bytes() const { return bytes_; }
  // The network whose bytes stand at `base`, which is aligned likewise.
  CudaBank at(const std::byte* base) const;

  // What it remembers takes so many bytes, zero before the first use.
  std::size_t state_bytes() const { return state_bytes_; }
  CudaBankState state(std::byte* base) const;

 private:
  CudaBank bank_{};  // its pointers count from `base`
  std::vector<std::byte> bytes_;
  std::size_t state_bytes_ = 0;
};

}  // namespace prophet
