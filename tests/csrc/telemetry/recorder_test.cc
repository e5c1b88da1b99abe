#include "telemetry/recorder.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace prophet {
namespace {

TEST(Recorder, TotalsAreSumsOverEvents) {
  Recorder recorder;
  recorder.record({10, 15, EventKind::stall, {0, -1}, 0});
  recorder.record({20, 27, EventKind::stall, {1, -1}, 0});
  recorder.record({30, 30, EventKind::miss, {1, 3}, 4096});
  EXPECT_EQ(recorder.totals(EventKind::stall).count, 2u);
  EXPECT_EQ(recorder.totals(EventKind::stall).time, 12);
  EXPECT_EQ(recorder.totals(EventKind::miss).bytes, 4096u);
  EXPECT_EQ(recorder.totals(EventKind::hit).count, 0u);
}

TEST(Recorder, KeepsNoTimelineUnlessAsked) {
  Recorder recorder;
  recorder.record({1, 2, EventKind::compute, {0, -1}, 0});
  EXPECT_TRUE(recorder.timeline().empty());
  EXPECT_EQ(recorder.timeline_dropped(), 0u);
}

TEST(Recorder, TimelineKeepsTheFirstEventsAndCountsTheRest) {
  Recorder recorder(2);
  for (Nanos t = 0; t < 5; ++t) recorder.record({t, t + 1, EventKind::compute, {0, -1}, 0});
  ASSERT_EQ(recorder.timeline().size(), 2u);
  EXPECT_EQ(recorder.timeline()[1].begin, 1);
  EXPECT_EQ(recorder.timeline_dropped(), 3u);
  EXPECT_EQ(recorder.totals(EventKind::compute).count, 5u);
}

TEST(Recorder, TellsItsWatcherEveryEvent) {
  struct : EventWatcher {
    std::vector<EventKind> heard;
    void happened(const Event& event) override { heard.push_back(event.kind); }
  } watcher;
  Recorder recorder(0, &watcher);
  recorder.record({1, 2, EventKind::stall, {0, -1}, 0});
  recorder.record({3, 3, EventKind::evicted, {0, 1}, 0});
  EXPECT_EQ(watcher.heard, (std::vector<EventKind>{EventKind::stall, EventKind::evicted}));
}

TEST(Recorder, EveryKindHasItsOwnName) {
  std::set<std::string> names;
  for (int kind = 0; kind < kEventKinds; ++kind) {
    const auto name = name_of(static_cast<EventKind>(kind));
    EXPECT_FALSE(name.empty());
    names.emplace(name);
  }
  EXPECT_EQ(names.size(), static_cast<std::size_t>(kEventKinds));
}

}  // namespace
}  // namespace prophet
