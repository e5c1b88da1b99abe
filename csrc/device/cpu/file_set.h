// The files that lanes read from, as they were when they were opened.
//
// Each file is opened for O_DIRECT when asked; whether that works is found out by a real read,
// because some file systems accept the flag and refuse the reads. Where it does not work, that
// file is read through the page cache without read-ahead.
#pragma once

#ifndef __linux__
#error "the cpu backend needs Linux (O_DIRECT, statx); write csrc/device/<system> for another one"
#endif

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/types.h"

namespace prophet {

class FileSet {
 public:
  FileSet() = default;
  FileSet(const FileSet&) = delete;
  FileSet& operator=(const FileSet&) = delete;
  ~FileSet();

  // Once; what they are. Throws ReadError naming the path that is missing, unreadable or not a
  // regular file.
  std::vector<FileInfo> open(const std::vector<std::string>& paths, bool direct);

  struct File {
    int fd = -1;
    bool direct = false;
    std::uint64_t unit = 1;  // of offsets, lengths and addresses of reads; a power of two
    FileInfo info;
  };
  std::size_t size() const { return files_.size(); }
  const File& operator[](std::int32_t file) const { return files_[static_cast<std::size_t>(file)]; }

  // The largest unit of all files: 1 when none is direct, else at least 512.
  std::uint64_t alignment() const { return alignment_; }
  // "O_DIRECT", "buffered", or both with the number of files that refused O_DIRECT.
  std::string description() const;

  // A sentence when the file is no longer the one that was opened.
  std::optional<std::string> changed(std::int32_t file) const;

 private:
  void open_one(const std::string& path, bool direct);

  std::vector<File> files_;
  std::uint64_t alignment_ = 1;
  bool asked_direct_ = false;
};

}  // namespace prophet
