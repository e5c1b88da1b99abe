// The host's end of the hit path (kernels/hit_path.h): what the device may find, what it reported,
// and which slots it may still read.
//
// `launch` belongs to the thread that calls forward; the rest to whoever holds the engine's lock.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <span>
#include <vector>

#include "core/types.h"
#include "engine/device_forecaster.h"
#include "engine/device_memory.h"
#include "engine/engine.h"
#include "kernels/hit_path.h"

namespace prophet {

// One layer call as the device saw it; valid until it is consumed.
struct HitReport {
  std::uint64_t call = 0;
  std::int32_t layer = 0, tokens = 0, top_k = 0, missing = 0;
  std::span<const std::int32_t> ids, found;  // [tokens * top_k]
  std::span<const float> weights;            // the same
  const float* hidden = nullptr;             // [hidden_width] or null
  const float* forecasts = nullptr;          // as the forecaster left them, or null
};

class HitPathHost {
 public:
  // `pairs`: the largest call; `forecaster` may be null and stays as long. Throws DeviceError.
  HitPathHost(const DeviceTables& tables, const Geometry& geometry, std::int32_t slots,
              std::int32_t pairs, std::int32_t hidden_width,
              const DeviceForecaster* forecaster = nullptr);
  // Lets a device that stands in a call go on, and waits for it.
  ~HitPathHost();

  std::int32_t pairs() const { return path_.pairs; }

  // A call will be queued: `begin_launch` under the lock, then `launch`, whatever it throws. The
  // forecaster goes first where the call says that there are forecasts.
  // Its number; 0 of a captured one, which is counted whenever its graph runs.
  std::uint64_t begin_launch(bool captured);
  void launch(const HitPathCall& call, CudaFfnCall& experts, void* stream, bool captured);

  // The oldest that was not consumed. Whoever consumes needs no lock for it.
  std::optional<HitReport> next();
  void consume(const HitReport& report);
  // The device stands in this call; until it is answered.
  void stand(const HitReport& report);
  void answer(const HitReport& report, bool given_up);
  // Every call fails from now on.
  void give_up();

  void list(std::size_t index, std::int32_t slot, const CudaExpert& expert);  // it may be found
  // False while the device may read what stood in the slot. What is listed there is taken back.
  bool may_overwrite(std::int32_t slot);
  void pump();  // news that found no room

  bool captured() const { return captured_; }
  bool outstanding() const;  // calls whose report was not consumed
  // Nothing queued reads an expert, and nothing will before the next begin_launch: found out
  // without waiting, or said by someone who has waited.
  bool idle();
  void quiet() { quiet_ = true; }
  bool is_quiet() const { return quiet_; }

 private:
  struct Slot {
    std::int64_t holds = -1;  // the expert that the device finds here
    std::int64_t was = -1;    // the one that it may still be reading
    std::uint64_t gone = 0;   // the update that took it away
  };
  void publish(std::size_t index, const CudaExpert& expert);
  bool write(const HitPathUpdate& update);

  const CudaApi& api_;
  const CudaKernels& kernels_;
  const int device_;
  const DeviceForecaster* const forecaster_;
  PinnedMemory mapped_;
  DeviceMemory memory_;
  DeviceEvent last_;
  HitPath path_{};
  HitPathMail* mail_ = nullptr;
  HitPathUpdate* updates_ = nullptr;
  std::byte* reports_ = nullptr;

  std::vector<Slot> slots_;
  std::vector<std::int32_t> place_;    // [experts of all layers] slot that is listed, -1
  std::vector<std::uint64_t> listed_;  // the same: number of the update that listed it
  std::deque<HitPathUpdate> waiting_;  // for room in the ring
  std::uint64_t issued_ = 0;           // updates, those that wait included
  std::uint64_t consumed_ = 0;
  std::atomic<std::uint64_t> begun_ = 0, queued_ = 0;  // calls
  std::vector<bool> in_call_;  // [experts of all layers] found by the call that stands
  bool standing_ = false, quiet_ = true, captured_ = false;
  std::atomic<bool> recorded_ = false;  // `last_` was
};

}  // namespace prophet
