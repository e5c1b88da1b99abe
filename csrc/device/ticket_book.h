// Which copies are under way, and which failed and why: the bookkeeping of tickets that backends
// share.
//
// A ticket costs memory only while it is pending or has failed: any other number ever issued
// has landed. A failure is kept at least until it has been thrown once, however many there are, so
// that it can never be mistaken for a landing; of those already thrown, the latest
// kRemembered still throw when asked again.
//
// Not thread-safe: the owner holds a lock.
#pragma once

#include <deque>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "device/backend.h"

namespace prophet {

class TicketBook {
 public:
  static constexpr std::size_t kRemembered = 4096;

  Ticket issue();
  void land(Ticket ticket);
  // `device`: not the reading failed but the device, which is DeviceError instead of ReadError.
  void fail(Ticket ticket, std::string why, bool device = false);

  // Landed or failed. Throws InvalidArgument for a number never issued.
  bool settled(Ticket ticket) const;
  // Landed. Throws ReadError or DeviceError with the reason if it failed, InvalidArgument as above.
  bool landed(Ticket ticket);

 private:
  struct Failure {
    std::string why;
    bool device = false, thrown = false;
  };
  Ticket last_ = 0;
  std::unordered_set<Ticket> pending_;
  std::unordered_map<Ticket, Failure> failed_;
  std::deque<Ticket> thrown_;  // oldest first
};

}  // namespace prophet
