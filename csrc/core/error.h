// Errors are types with a sentence that names the culprit and the way out.
#pragma once

#include <stdexcept>

namespace prophet {

// Root of everything this library throws on purpose.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The caller asked for something that cannot be: a shape, a count, a name.
class InvalidArgument : public Error {
 public:
  using Error::Error;
};

// Bytes could not be brought: a missing, changed, truncated or failing file.
class ReadError : public Error {
 public:
  using Error::Error;
};

// A device or its driver refused or failed: no memory, a lost device, no driver at all.
class DeviceError : public Error {
 public:
  using Error::Error;
};

// The object was closed, or is asked for something its present state forbids.
class StateError : public Error {
 public:
  using Error::Error;
};

}  // namespace prophet
