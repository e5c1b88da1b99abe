// Which machine an engine of Python's runs on.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "device/backend.h"
#include "engine/engine.h"

namespace prophet {

struct BackendArguments {
  std::string kind = "cpu";  // cpu | cuda
  std::string io = "auto";
  bool direct = true;
  int depth = 16;
  // Of cuda: device memory of the caller's for the experts (0: its own), and the host pool.
  std::uintptr_t memory = 0;
  std::uint64_t memory_bytes = 0;
  std::uint64_t pool_bytes = 0;  // 0: the backend's default
};

struct ChosenBackend {
  std::shared_ptr<Backend> backend;
  DeviceTables tables;    // empty on a CPU
  bool emulated = false;  // the "device" is an emulated one
};

// Throws InvalidArgument for names, DeviceError where there is no device (the sentence says why).
ChosenBackend make_backend(const BackendArguments& arguments);

}  // namespace prophet
