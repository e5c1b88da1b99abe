#include "device/cpu/file_read.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace prophet {
namespace {

constexpr int kIdleAttempts = 64;
constexpr std::uint64_t kLargestAttempt = std::uint64_t{1} << 30;  // the kernel counts in 31 bits

}  // namespace

FileReader::Next FileReader::fail(FileRead& read, const std::string& why) const {
  read.why = "cannot read " + std::to_string(read.from.bytes) + " bytes at offset " +
             std::to_string(read.from.offset) + " of " + files_[read.from.file].info.path + ": " +
             why;
  return Next::failed;
}

FileReader::Next FileReader::begin(FileRead& read) const {
  if (auto change = files_.changed(read.from.file)) {
    read.why = std::move(*change);
    return Next::failed;
  }
  const std::uint64_t end = files_[read.from.file].info.size;
  read.size = read.from.offset < end ? std::min(read.from.bytes, end - read.from.offset) : 0;
  if (read.from.bytes - read.size >= files_.alignment()) {
    return fail(read, "the file ends at " + std::to_string(end) +
                          ", it is truncated or its index is wrong: download it again");
  }
  return Next::attempt;
}

FileReader::Attempt FileReader::attempt(FileRead& read) const {
  if (faults_) read.fault = faults_(attempts_.fetch_add(1), read.lane, read.from);
  const std::uint64_t bytes = std::min(read.from.bytes - read.done, kLargestAttempt);
  return {files_[read.from.file].fd, read.to + read.done, read.from.offset + read.done,
          static_cast<std::uint32_t>(bytes)};
}

FileReader::Next FileReader::take(FileRead& read, std::int64_t result) const {
  if (faults_) {
    const std::uint64_t kept = read.fault.error != 0 ? 0 : read.fault.at_most;
    if (result > 0 && std::uint64_t(result) > kept) {
      std::memset(read.to + read.done + kept, 0xA5, std::uint64_t(result) - kept);
      result = std::int64_t(kept);
    }
    if (read.fault.error != 0) result = -read.fault.error;
  }
  if (result == -EINTR || result == -EAGAIN) {
    result = 0;
  } else if (result < 0) {
    return fail(read, std::strerror(static_cast<int>(-result)));
  } else if (result == 0) {
    return fail(read, "the file ended early, at " + std::to_string(read.from.offset + read.done));
  }
  const std::uint64_t had = read.done;
  read.done += std::uint64_t(result);
  if (read.done >= read.size) {
    // What was overwritten while it was being read may be half old, half new.
    if (auto change = files_.changed(read.from.file)) {
      read.why = std::move(*change);
      return Next::failed;
    }
    return Next::landed;
  }
  read.done -= read.done % files_[read.from.file].unit;
  read.idle = read.done == had ? read.idle + 1 : 0;
  if (read.idle > kIdleAttempts) {
    return fail(read, "no progress in " + std::to_string(kIdleAttempts) + " attempts");
  }
  return Next::attempt;
}

}  // namespace prophet
