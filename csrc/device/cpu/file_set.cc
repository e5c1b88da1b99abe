#include "device/cpu/file_set.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "core/error.h"

namespace prophet {
namespace {

constexpr std::uint64_t kSafeUnit = 4096;  // satisfies every disk and file system we know of

std::int64_t mtime_ns(const struct stat& status) {
  return std::int64_t{status.st_mtim.tv_sec} * 1'000'000'000 + status.st_mtim.tv_nsec;
}

// What the kernel says O_DIRECT needs of this file; 0: it cannot.
std::uint64_t direct_unit(int fd) {
#ifdef STATX_DIOALIGN
  struct statx status = {};
  if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) == 0 &&
      (status.stx_mask & STATX_DIOALIGN) != 0) {
    if (status.stx_dio_offset_align == 0) return 0;
    return std::max<std::uint64_t>({512, status.stx_dio_offset_align, status.stx_dio_mem_align});
  }
#endif
  (void)fd;
  return kSafeUnit;
}

// 0, or the errno of one read of one unit.
int try_read(int fd, std::uint64_t unit) {
  const auto free_it = [](void* memory) { std::free(memory); };
  const std::unique_ptr<void, decltype(free_it)> buffer(std::aligned_alloc(unit, unit), free_it);
  if (!buffer) return ENOMEM;
  ssize_t got;
  do {
    got = pread(fd, buffer.get(), unit, 0);
  } while (got < 0 && errno == EINTR);
  return got < 0 ? errno : 0;
}

[[noreturn]] void cannot_open(const std::string& path, const std::string& why) {
  throw ReadError("cannot read " + path + ": " + why);
}

}  // namespace

FileSet::~FileSet() {
  for (const File& file : files_) close(file.fd);
}

std::vector<FileInfo> FileSet::open(const std::vector<std::string>& paths, bool direct) {
  if (!files_.empty()) throw StateError("files were already opened; a backend opens them once");
  asked_direct_ = direct;
  files_.reserve(paths.size());
  std::vector<FileInfo> infos;
  for (const std::string& path : paths) {
    open_one(path, direct);
    infos.push_back(files_.back().info);
  }
  return infos;
}

void FileSet::open_one(const std::string& path, bool direct) {
  const auto open_as = [&](int flags) {
    // Non-blocking: a named pipe without a writer must be refused, not waited for.
    return ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | flags);
  };
  File file;
  file.fd = open_as(0);
  if (file.fd < 0) cannot_open(path, std::strerror(errno));
  files_.push_back(file);  // from here on the destructor closes it
  File& kept = files_.back();

  struct stat status = {};
  if (fstat(kept.fd, &status) != 0) cannot_open(path, std::strerror(errno));
  if (!S_ISREG(status.st_mode)) cannot_open(path, "it is not a regular file");
  kept.info = {path, static_cast<std::uint64_t>(status.st_size), mtime_ns(status)};

  const std::uint64_t stated = direct ? direct_unit(kept.fd) : 0;
  for (std::uint64_t unit = stated; unit != 0;) {
    const int fd = open_as(O_DIRECT);
    if (fd < 0) break;
    if (try_read(fd, unit) == 0) {
      // The path may have been replaced between the two opens: hold what was looked at.
      struct stat again = {};
      const bool same =
          fstat(fd, &again) == 0 && again.st_ino == status.st_ino && again.st_dev == status.st_dev;
      close(kept.fd);
      kept.fd = fd;
      kept.direct = true;
      kept.unit = unit;
      if (!same) cannot_open(path, "it was replaced while it was being opened: load again");
      break;
    }
    close(fd);
    unit = unit < kSafeUnit ? kSafeUnit : 0;
  }
  if (!kept.direct) {
    if (const int error = try_read(kept.fd, kSafeUnit)) cannot_open(path, std::strerror(error));
    posix_fadvise(kept.fd, 0, 0, POSIX_FADV_RANDOM);
  }
  alignment_ = std::max(alignment_, kept.unit);
}

std::string FileSet::description() const {
  const auto direct =
      std::count_if(files_.begin(), files_.end(), [](const File& file) { return file.direct; });
  const std::size_t refused = files_.size() - static_cast<std::size_t>(direct);
  if (!asked_direct_) return "buffered";
  if (refused == 0) return "O_DIRECT";
  if (direct == 0) return "buffered (O_DIRECT refused by the file system)";
  return "O_DIRECT, but buffered for " + std::to_string(refused) + " of " +
         std::to_string(files_.size()) + " files that refuse it";
}

std::optional<std::string> FileSet::changed(std::int32_t file) const {
  const FileInfo& info = (*this)[file].info;
  struct stat status = {};
  if (fstat((*this)[file].fd, &status) != 0) {
    return "cannot read " + info.path + ": " + std::strerror(errno);
  }
  const auto size = static_cast<std::uint64_t>(status.st_size);
  if (size == info.size && mtime_ns(status) == info.mtime_ns) return std::nullopt;
  const std::string what = size == info.size ? "it was written to"
                                             : "its size was " + std::to_string(info.size) +
                                                   " bytes and is " + std::to_string(size);
  return info.path + " changed while in use (" + what + "): reload the model";
}

}  // namespace prophet
