// A backend over three real files of odd sizes, and a switch that makes the next read fail.
#pragma once

#include <atomic>
#include <cerrno>
#include <memory>
#include <string>
#include <vector>

#include "device/backend_conformance.h"
#include "device/cpu/file_read.h"
#include "device/temp_files.h"

namespace prophet::testing_device {

class DiskRig : public BackendRig {
 public:
  Backend& backend() override { return *backend_; }
  std::vector<std::string> paths() const override { return paths_; }
  // The tests give it the first unit of file 0 while nothing else reads there. A pool needs no file
  // for what it holds: the copy asks for more than any before.
  Ticket copy_that_fails(Lane lane, std::byte* to, const Extent& from) override {
    failing_ = true;
    const Ticket ticket = backend_->copy(lane, to, from);
    backend_->wait_any({&ticket, 1});
    failing_ = false;
    return ticket;
  }
  void destroy() override { backend_.reset(); }

 protected:
  FaultPlan faults() {
    return [this](std::uint64_t, Lane, const Extent& from) {
      return Fault{failing_ && from.file == 0 && from.offset == 0 ? EIO : 0};
    };
  }

 private:
  TempFiles files_;
  const std::vector<std::string> paths_{files_.make("a", 0, (2 << 20) + 123),
                                        files_.make("b", 1, 1 << 20),
                                        files_.make("c", 2, 4096 * 5 + 1)};
  std::atomic<bool> failing_{false};

 protected:
  std::unique_ptr<Backend> backend_;  // made by the rig, and gone before what it needs
};

}  // namespace prophet::testing_device
