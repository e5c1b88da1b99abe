// Files for tests in a directory of their own, gone with the object.
#pragma once

#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "device/manual/manual_backend.h"

namespace prophet::testing_device {

class TempFiles {
 public:
  TempFiles() {
    std::string pattern = (std::filesystem::temp_directory_path() / "prophet-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp " + pattern);
    directory_ = pattern;
  }
  TempFiles(const TempFiles&) = delete;
  TempFiles& operator=(const TempFiles&) = delete;
  ~TempFiles() { std::filesystem::remove_all(directory_); }

  std::string path(const std::string& name) const { return (directory_ / name).string(); }

  // A file of `bytes` bytes that holds ManualBackend::byte_at(file, ...).
  std::string make(const std::string& name, std::int32_t file, std::uint64_t bytes) const {
    std::vector<char> content(bytes);
    for (std::uint64_t i = 0; i < bytes; ++i) {
      content[i] = static_cast<char>(ManualBackend::byte_at(file, i));
    }
    std::ofstream(path(name), std::ios::binary).write(content.data(), std::streamsize(bytes));
    return path(name);
  }

 private:
  std::filesystem::path directory_;
};

}  // namespace prophet::testing_device
