#include "device/ticket_book.h"

#include <utility>

#include "core/error.h"

namespace prophet {

Ticket TicketBook::issue() {
  pending_.insert(++last_);
  return last_;
}

void TicketBook::land(Ticket ticket) { pending_.erase(ticket); }

void TicketBook::fail(Ticket ticket, std::string why, bool device) {
  failed_[ticket] = {std::move(why), device, false};
  pending_.erase(ticket);
}

bool TicketBook::settled(Ticket ticket) const {
  if (ticket > last_) {
    throw InvalidArgument("ticket " + std::to_string(ticket) +
                          " was never issued; ask only for what copy or mark returned");
  }
  return !pending_.contains(ticket);
}

bool TicketBook::landed(Ticket ticket) {
  if (!settled(ticket)) return false;
  const auto at = failed_.find(ticket);
  if (at == failed_.end()) return true;
  const std::string why = at->second.why;
  const bool device = at->second.device;
  if (!at->second.thrown) {
    at->second.thrown = true;
    thrown_.push_back(ticket);
    if (thrown_.size() > kRemembered) {
      failed_.erase(thrown_.front());
      thrown_.pop_front();
    }
  }
  if (device) throw DeviceError(why);
  throw ReadError(why);
}

}  // namespace prophet
