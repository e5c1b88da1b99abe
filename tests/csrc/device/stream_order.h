// What must have happened before what, on streams of a device, and which tasks touch the same
// memory in no order.
//
// Each stream has a vector clock: what of each stream, and of what the host knew, precedes its next
// task. A race is a pair of tasks that touch the same bytes, one of them writing, and neither
// of which precedes the other. The verdict falls when the later one is queued, from what was asked
// for alone: it does not depend on how fast anything was.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace prophet::testing_device {

class StreamOrder {
 public:
  using Clock = std::map<int, std::uint64_t>;  // tasks of each stream

  struct Range {
    const void* at;
    std::size_t bytes;
  };

  // The host queues a task: it follows the stream's earlier ones and what the host knows.
  void queued(int stream) {
    join(streams_[stream], host_);
    ++streams_[stream][stream];
  }
  const Clock& clock(int stream) { return streams_[stream]; }
  void waits(int stream, const Clock& event) { join(streams_[stream], event); }
  void host_learns(const Clock& clock) { join(host_, clock); }

  void host_learns_all() {
    for (const auto& [id, clock] : streams_) join(host_, clock);
  }

  // The stream's latest task touches memory.
  void touches(int stream, const Range& range, bool write, const char* what) {
    Clock& clock = streams_[stream];
    const auto begin = reinterpret_cast<std::uintptr_t>(range.at);
    const Access now{begin, begin + range.bytes, write, stream, clock[stream], what};
    // What the host knows precedes all that is still to come.
    std::erase_if(accesses_, [&](const Access& each) { return host_[each.stream] >= each.when; });
    for (const Access& each : accesses_) {
      const bool meets = each.begin < now.end && now.begin < each.end;
      if (meets && (write || each.write) && clock[each.stream] < each.when) {
        races_.push_back(std::string(what) + " what " + each.what + " in no order");
      }
    }
    accesses_.push_back(now);
  }
  const std::vector<std::string>& races() const { return races_; }

 private:
  struct Access {
    std::uintptr_t begin, end;
    bool write;
    int stream;
    std::uint64_t when;
    const char* what;
  };
  static void join(Clock& into, const Clock& from) {
    for (const auto& [id, when] : from) into[id] = std::max(into[id], when);
  }

  std::map<int, Clock> streams_;
  Clock host_;
  std::vector<Access> accesses_;
  std::vector<std::string> races_;
};

}  // namespace prophet::testing_device
