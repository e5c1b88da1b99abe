// What every backend refuses before it copies.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/types.h"

namespace prophet {

// Throws InvalidArgument for a chunk that is empty, not in units of `unit` (a power of two; its
// place `to` included) or of none of `files` files.
void check_chunk(const Extent& from, const std::byte* to, std::size_t files, std::uint64_t unit);
// Throws InvalidArgument where `bytes` from `to` on are not all in the backend's fast memory.
void check_inside(std::span<const std::byte> memory, const std::byte* to, std::uint64_t bytes);

}  // namespace prophet
