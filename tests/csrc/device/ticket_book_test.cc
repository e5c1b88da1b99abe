#include "device/ticket_book.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "core/error.h"

namespace prophet {
namespace {

TEST(TicketBook, TicketsArePendingThenLanded) {
  TicketBook book;
  const Ticket a = book.issue(), b = book.issue();
  EXPECT_NE(a, b);
  EXPECT_FALSE(book.settled(a));
  EXPECT_FALSE(book.landed(a));
  book.land(a);
  EXPECT_TRUE(book.landed(a));
  EXPECT_FALSE(book.landed(b));
  EXPECT_TRUE(book.landed(0));
  EXPECT_THROW(book.landed(b + 1), InvalidArgument);
}

// However many fail before anybody asks, none is ever taken for landed.
TEST(TicketBook, EveryFailureIsThrownAtLeastOnce) {
  TicketBook book;
  const std::size_t many = 3 * TicketBook::kRemembered;
  std::vector<Ticket> tickets;
  for (std::size_t i = 0; i < many; ++i) {
    tickets.push_back(book.issue());
    book.fail(tickets.back(), "ticket " + std::to_string(tickets.back()));
  }
  for (Ticket each : tickets) {
    EXPECT_TRUE(book.settled(each));
    try {
      book.landed(each);
      ADD_FAILURE() << "ticket " << each << " landed";
    } catch (const ReadError& error) {
      EXPECT_EQ(error.what(), "ticket " + std::to_string(each));
    }
  }
  // The latest are still remembered.
  for (std::size_t i = many - TicketBook::kRemembered; i < many; ++i) {
    EXPECT_THROW(book.landed(tickets[i]), ReadError);
  }
}

TEST(TicketBook, WhatADeviceFailedIsNoReadError) {
  TicketBook book;
  const Ticket read = book.issue(), device = book.issue();
  book.fail(read, "a read");
  book.fail(device, "a device", true);
  EXPECT_THROW(book.landed(read), ReadError);
  EXPECT_THROW(book.landed(device), DeviceError);
  EXPECT_THROW(book.landed(device), DeviceError);
}

}  // namespace
}  // namespace prophet
