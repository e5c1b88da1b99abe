// What every backend promises (device/backend.h), as tests. A backend enrols with a rig and one
// line:
//
//   INSTANTIATE_TEST_SUITE_P(Mine, BackendConformance, testing::Values(RigMaker{"mine", make}),
//                            RigMaker::name_of);
//
// Files hold ManualBackend::byte_at(file, offset), whatever brings them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "device/backend.h"
#include "device/manual/manual_backend.h"

namespace prophet::testing_device {

// A backend with files behind it. Open and fast_memory are left to the test.
class BackendRig {
 public:
  virtual ~BackendRig() = default;
  virtual Backend& backend() = 0;
  virtual std::vector<std::string> paths() const = 0;
  // A copy as Backend::copy, of which the test knows that it will fail.
  virtual Ticket copy_that_fails(Lane lane, std::byte* to, const Extent& from) = 0;
  // Destroys the backend, whatever is under way.
  virtual void destroy() = 0;
  // Fast memory, where the host may not follow its addresses.
  virtual void read(const std::byte* from, std::span<std::byte> to) {
    std::copy_n(from, to.size(), to.begin());
  }
  virtual void fill(std::span<std::byte> memory, std::byte with) {
    std::fill(memory.begin(), memory.end(), with);
  }
};

struct RigMaker {
  std::string name;
  std::function<std::unique_ptr<BackendRig>()> make;
  static std::string name_of(const testing::TestParamInfo<RigMaker>& info) {
    return info.param.name;
  }
};

// Throws whatever `call` throws; the sentence of a ReadError, or an empty string.
inline std::string read_error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const ReadError& error) {
    return error.what();
  }
  return {};
}

class BackendConformance : public testing::TestWithParam<RigMaker> {
 protected:
  static constexpr std::size_t kMemory = std::size_t{8} << 20;

  void SetUp() override {
    rig_ = GetParam().make();
    files_ = backend().open(rig_->paths());
    memory_ = backend().fast_memory(kMemory);
    unit_ = backend().alignment();
  }

  Backend& backend() { return rig_->backend(); }

  // A chunk of at most `most` bytes that lies in the file, its last unit possibly across the end.
  Extent any_chunk(std::mt19937_64& random, std::uint64_t most) const {
    const auto file = random() % files_.size();
    const std::uint64_t units = (files_[file].size + unit_ - 1) / unit_;
    const std::uint64_t first = random() % std::min<std::uint64_t>(units, 8 * most / unit_);
    const std::uint64_t count =
        std::min(1 + random() % std::max<std::uint64_t>(1, most / unit_), units - first);
    return {static_cast<std::int32_t>(file), first * unit_, count * unit_, 0};
  }

  // Bytes of the chunk that the file holds.
  std::uint64_t held(const Extent& chunk) const {
    const std::uint64_t end = files_[static_cast<std::size_t>(chunk.file)].size;
    return std::min(chunk.bytes, end - chunk.offset);
  }

  std::vector<std::byte> fetch(const std::byte* at, std::size_t bytes) {
    std::vector<std::byte> out(bytes);
    rig_->read(at, out);
    return out;
  }
  bool all_are(std::byte each, const std::byte* at, std::size_t bytes) {
    const std::vector<std::byte> have = fetch(at, bytes);
    return std::all_of(have.begin(), have.end(), [=](std::byte other) { return other == each; });
  }

  void expect_content(const std::byte* from, const Extent& chunk) {
    const std::vector<std::byte> have = fetch(from, held(chunk));
    const std::byte* at = have.data();
    const std::byte* end = at + have.size();
    std::uint64_t offset = chunk.offset;
    const auto wrong = std::find_if(at, end, [&](std::byte each) {
      return each != ManualBackend::byte_at(chunk.file, offset++);
    });
    ASSERT_EQ(wrong, end) << "byte " << wrong - at << " of " << chunk.bytes << " at "
                          << chunk.offset << " of file " << chunk.file;
  }

  std::unique_ptr<BackendRig> rig_;
  std::vector<FileInfo> files_;
  std::span<std::byte> memory_;
  std::uint64_t unit_ = 1;
};

}  // namespace prophet::testing_device
