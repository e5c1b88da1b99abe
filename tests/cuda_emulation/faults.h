// Calls of the fake runtime: counted by name, made to fail on purpose, dead once the device is
// lost.
#pragma once

#include <driver_types.h>

#include <cstdint>
#include <string>

namespace prophet::emulation {

// At the head of every call. Not 0: what the call must return, without doing anything.
cudaError_t enter(const char* call);
// At the end: remembers an error as the thread's last one.
cudaError_t leave(cudaError_t error);
// The thread's last error; `forget` clears it. A lost device is never forgotten.
cudaError_t last_error(bool forget);

// From now on every call returns the code.
void lose_device(cudaError_t code);
bool device_lost();

// Calls since the last revive(); of one name, or of all ("").
std::uint64_t calls(const std::string& name);
// Nothing was ever called, no device lost: what a new process would see.
void revive();

}  // namespace prophet::emulation
