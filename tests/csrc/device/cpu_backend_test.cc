#include "device/cpu/cpu_backend.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <future>
#include <thread>

#include "device/disk_rig.h"

namespace prophet {
namespace {

using testing::HasSubstr;
using testing_device::BackendConformance;
using testing_device::DiskRig;
using testing_device::read_error_of;
using testing_device::RigMaker;
using testing_device::TempFiles;

class CpuRig final : public DiskRig {
 public:
  explicit CpuRig(CpuOptions options) {
    options.faults = faults();
    backend_ = make_cpu_backend(options);
  }
  ~CpuRig() override { destroy(); }
};

RigMaker rig(const std::string& name, CpuOptions options) {
  return {name, [options] { return std::make_unique<CpuRig>(options); }};
}

CpuOptions with(IoKind io, bool direct, int depth) {
  CpuOptions options;
  options.io = io;
  options.direct = direct;
  options.depth = depth;
  return options;
}

bool have_uring() {
  try {
    make_cpu_backend(with(IoKind::uring, true, 1));
    return true;
  } catch (const InvalidArgument&) {
    return false;
  }
}

std::vector<IoKind> kinds() {
  return have_uring() ? std::vector{IoKind::pread, IoKind::uring} : std::vector{IoKind::pread};
}

INSTANTIATE_TEST_SUITE_P(Pread, BackendConformance,
                         testing::Values(rig("direct", with(IoKind::pread, true, 16)),
                                         rig("buffered", with(IoKind::pread, false, 16)),
                                         rig("shallow", with(IoKind::pread, true, 1))),
                         RigMaker::name_of);
#if PROPHET_HAVE_URING
// `auto_`: where io_uring is forbidden, what serves instead must pass as well.
INSTANTIATE_TEST_SUITE_P(Uring, BackendConformance,
                         testing::Values(rig("direct", with(IoKind::auto_, true, 16)),
                                         rig("buffered", with(IoKind::auto_, false, 16)),
                                         rig("shallow", with(IoKind::auto_, true, 1))),
                         RigMaker::name_of);
#endif

// One file of a few units behind one backend.
struct Bench {
  Bench(const CpuOptions& options, std::uint64_t size) : path(files.make("weights", 0, size)) {
    backend = make_cpu_backend(options);
    info = backend->open({path}).front();
    memory = backend->fast_memory(1 << 20);
    unit = std::max<std::uint64_t>(512, backend->alignment());
  }
  std::string error_of(const Extent& from, Lane lane = Lane::demand) {
    return read_error_of([&] { backend->wait(backend->copy(lane, memory.data(), from)); });
  }
  bool holds(const Extent& from) const {
    const std::uint64_t bytes = std::min(from.bytes, info.size - from.offset);
    for (std::uint64_t i = 0; i < bytes; ++i) {
      if (memory[i] != ManualBackend::byte_at(0, from.offset + i)) return false;
    }
    return true;
  }

  TempFiles files;
  std::string path;
  std::unique_ptr<Backend> backend;
  FileInfo info;
  std::span<std::byte> memory;
  std::uint64_t unit;
};

class CpuBackendTest : public testing::TestWithParam<std::tuple<IoKind, bool>> {
 protected:
  CpuOptions options(FaultPlan faults = {}, int depth = 8) const {
    CpuOptions made = with(std::get<0>(GetParam()), std::get<1>(GetParam()), depth);
    made.faults = std::move(faults);
    return made;
  }
};

INSTANTIATE_TEST_SUITE_P(Io, CpuBackendTest,
                         testing::Combine(testing::ValuesIn(kinds()), testing::Bool()),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param) == IoKind::uring ? "uring"
                                                                                       : "pread") +
                                  (std::get<1>(info.param) ? "Direct" : "Buffered");
                         });

TEST_P(CpuBackendTest, AReadErrorNamesFileOffsetAndCause) {
  for (int error : {EIO, ENOMEM, EINVAL, EBADF}) {
    Bench bench(options([&](std::uint64_t, Lane, const Extent&) { return Fault{error}; }), 1 << 16);
    const std::string sentence = bench.error_of({0, bench.unit, bench.unit, 0});
    EXPECT_THAT(sentence, HasSubstr(bench.path));
    EXPECT_THAT(sentence, HasSubstr("offset " + std::to_string(bench.unit)));
    EXPECT_THAT(sentence, HasSubstr(std::strerror(error)));
    EXPECT_FALSE(bench.holds({0, bench.unit, bench.unit, 0}));
  }
}

TEST_P(CpuBackendTest, InterruptedReadsAreTriedAgain) {
  for (int error : {EINTR, EAGAIN}) {
    Bench bench(options([&](std::uint64_t attempt, Lane, const Extent&) {
                  return Fault{attempt % 3 != 2 ? error : 0};
                }),
                1 << 16);
    const Extent chunk{0, bench.unit, 4 * bench.unit, 0};
    EXPECT_EQ(bench.error_of(chunk), "");
    EXPECT_TRUE(bench.holds(chunk));
  }
}

TEST_P(CpuBackendTest, ReadsThatNeverGetAnywhereEnd) {
  Bench bench(options([](std::uint64_t, Lane, const Extent&) { return Fault{EAGAIN}; }), 1 << 16);
  EXPECT_THAT(bench.error_of({0, 0, bench.unit, 0}), HasSubstr("no progress"));
}

TEST_P(CpuBackendTest, ShortReadsGoOnWhereTheyStopped) {
  std::mt19937_64 random(5);
  // Whatever a direct file yields beyond whole units has to be asked for again.
  Bench bench(options([&](std::uint64_t, Lane, const Extent&) {
                return Fault{0, 1 + random() % 9000};
              }),
              (1 << 18) + 77);
  for (int i = 0; i < 20; ++i) {
    const std::uint64_t units = (bench.info.size + bench.unit - 1) / bench.unit;
    const std::uint64_t first = random() % units;
    std::uint64_t bytes = (1 + random() % (units - first)) * bench.unit;
    if (bench.backend->alignment() == 1) {
      bytes = std::min(bytes, bench.info.size - first * bench.unit);
    }
    const Extent chunk{0, first * bench.unit, bytes, 0};
    EXPECT_EQ(bench.error_of(chunk), "");
    EXPECT_TRUE(bench.holds(chunk));
  }
}

TEST_P(CpuBackendTest, AFileThatEndsEarlyFails) {
  Bench bench(options([](std::uint64_t attempt, Lane, const Extent&) {
                return Fault{0, attempt == 0 ? 512u : 0u};
              }),
              1 << 16);
  EXPECT_THAT(bench.error_of({0, 0, 8 * bench.unit, 0}), HasSubstr("ended early"));
}

TEST_P(CpuBackendTest, AChangedFileIsRefused) {
  const auto change = [](const std::string& path, int how) {
    if (how == 0) std::filesystem::resize_file(path, (1 << 16) + 1);
    if (how == 1) std::filesystem::resize_file(path, 1 << 15);
    if (how == 2) {
      const timespec times[2] = {{0, UTIME_OMIT}, {1, 1}};
      ASSERT_EQ(utimensat(AT_FDCWD, path.c_str(), times, 0), 0);
    }
  };
  for (int how : {0, 1, 2}) {
    Bench before(options(), 1 << 16);
    EXPECT_EQ(before.error_of({0, 0, before.unit, 0}), "");
    change(before.path, how);
    const std::string sentence = before.error_of({0, 0, before.unit, 0});
    EXPECT_THAT(sentence, HasSubstr(before.path + " changed while in use"));
    EXPECT_THAT(sentence, HasSubstr("reload the model"));
    // Told as such even where the bytes are not there any more.
    EXPECT_THAT(before.error_of({0, (1 << 16) - before.unit, before.unit, 0}),
                HasSubstr("changed while in use"));

    // Changed after it was looked at, while it is being read.
    std::string path;
    Bench during(options([&](std::uint64_t, Lane, const Extent&) {
                   change(path, how);
                   return Fault{};
                 }),
                 1 << 16);
    path = during.path;
    EXPECT_THAT(during.error_of({0, 0, during.unit, 0}), HasSubstr("changed while in use"));
  }
}

// A slow disk: the first prefetch is held until everything else has been asked for.
TEST_P(CpuBackendTest, DemandStartsBeforeEveryPrefetchThatWaits) {
  std::promise<void> all_asked;
  std::shared_future<void> asked = all_asked.get_future().share();
  std::promise<void> first_started;
  std::vector<std::uint64_t> order;  // of starts; one lane thread writes, read after the waits
  Bench bench(options(
                  [&](std::uint64_t attempt, Lane, const Extent& from) {
                    order.push_back(from.offset);
                    if (attempt == 0) first_started.set_value();
                    asked.wait();
                    return Fault{};
                  },
                  1),
              1 << 16);
  std::vector<Ticket> tickets;
  std::vector<std::uint64_t> expected;
  const auto ask = [&](Lane lane, std::uint64_t index) {
    tickets.push_back(bench.backend->copy(lane, bench.memory.data() + index * bench.unit,
                                          {0, index * bench.unit, bench.unit, 0}));
  };
  for (std::uint64_t i = 0; i < 6; ++i) ask(Lane::prefetch, i);
  first_started.get_future().wait();
  for (std::uint64_t i = 6; i < 10; ++i) ask(Lane::demand, i);
  all_asked.set_value();
  for (Ticket each : tickets) bench.backend->wait(each);
  for (std::uint64_t i : {0, 6, 7, 8, 9, 1, 2, 3, 4, 5}) expected.push_back(i * bench.unit);
  EXPECT_EQ(order, expected);
}

TEST_P(CpuBackendTest, SaysHowItReads) {
  Bench bench(options(), 1 << 16);
  const bool uring = std::get<0>(GetParam()) == IoKind::uring;
  EXPECT_THAT(bench.backend->description(), HasSubstr(uring ? "io_uring, " : "pread x4, "));
  EXPECT_THAT(bench.backend->description(), HasSubstr(", depth 8"));
  if (!std::get<1>(GetParam())) {
    EXPECT_THAT(bench.backend->description(), HasSubstr("buffered"));
    EXPECT_EQ(bench.backend->alignment(), 1u);
  }
}

TEST_P(CpuBackendTest, RefusesWhatIsNoFile) {
  TempFiles files;
  ASSERT_EQ(mkfifo(files.path("pipe").c_str(), 0600), 0);
  files.make("good", 0, 100);
  for (const char* name : {"missing", "pipe", "."}) {
    const auto backend = make_cpu_backend(options());
    const std::string sentence = read_error_of([&] {
      backend->open({files.path("good"), files.path(name)});
    });
    EXPECT_THAT(sentence, HasSubstr("cannot read " + files.path(name)));
  }
}

TEST_P(CpuBackendTest, AnEmptyFileOpensAndHoldsNothing) {
  Bench bench(options(), 0);
  EXPECT_EQ(bench.info.size, 0u);
  EXPECT_THAT(bench.error_of({0, 0, bench.unit, 0}), HasSubstr("ends at 0"));
}

// Memory as a file system: O_DIRECT may be refused there, reads may not.
TEST_P(CpuBackendTest, ReadsFilesInMemory) {
  if (access("/dev/shm", W_OK) != 0) GTEST_SKIP() << "no writable /dev/shm";
  const std::string path = "/dev/shm/prophet-test-" + std::to_string(getpid());
  TempFiles files;
  std::filesystem::copy_file(files.make("weights", 0, 10000), path);
  const auto backend = make_cpu_backend(options());
  backend->open({path});
  std::filesystem::remove(path);
  const auto memory = backend->fast_memory(1 << 16);
  const std::uint64_t unit = backend->alignment();
  backend->wait(
      backend->copy(Lane::demand, memory.data(), {0, 0, (10000 + unit - 1) / unit * unit, 0}));
  for (std::uint64_t i = 0; i < 10000; ++i) ASSERT_EQ(memory[i], ManualBackend::byte_at(0, i));
}

TEST(CpuBackend, RefusesADepthOutOfRange) {
  for (int depth : {-1, 0, 1025}) {
    EXPECT_THROW(make_cpu_backend(with(IoKind::auto_, true, depth)), InvalidArgument);
  }
}

TEST(CpuBackend, RefusesMemoryThatCannotBeHad) {
  const auto backend = make_cpu_backend({});
  EXPECT_THROW(backend->fast_memory(0), InvalidArgument);
  EXPECT_THROW(backend->fast_memory(std::size_t{1} << 60), InvalidArgument);
  EXPECT_EQ(backend->fast_memory(4096).size(), 4096u);
}

// Forbids io_uring to the calling thread, as container runtimes do.
bool forbid_uring() {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {4, filter};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

TEST(CpuBackend, PreadsServeWhereIoUringIsForbidden) {
  std::thread([] {
    ASSERT_TRUE(forbid_uring());
    TempFiles files;
    const auto backend = make_cpu_backend({});
    EXPECT_THAT(backend->description(), HasSubstr("pread x4 (no io_uring: "));
    backend->open({files.make("weights", 0, 1 << 16)});
    const auto memory = backend->fast_memory(1 << 16);
    backend->wait(backend->copy(Lane::demand, memory.data(), {0, 0, 1 << 16, 0}));
    EXPECT_EQ(memory[5000], ManualBackend::byte_at(0, 5000));
    EXPECT_THAT([] { make_cpu_backend(with(IoKind::uring, true, 8)); },
                testing::ThrowsMessage<InvalidArgument>(HasSubstr("use io=auto or io=pread")));
  }).join();
}

}  // namespace
}  // namespace prophet
