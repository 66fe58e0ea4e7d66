// Packed matrices in a file: read at full speed, with a sum that tells damage.
#pragma once

#include <cstddef>
#include <cstdint>

#include "memory.h"
#include "pool.h"

namespace kveik {

// 64 bits that change when any byte does; not meant to withstand an attacker. All threads take
// part.
uint64_t checksum(Pool& pool, const void* data, size_t bytes);

// `bytes` at `offset` of an open file -> a new buffer and its checksum.
// Throws std::runtime_error when the file ends before, or cannot be read.
Buffer read_part(Pool& pool, int file, int64_t offset, size_t bytes, uint64_t& sum);

}  // namespace kveik
