// Packed matrices in a file: used where they lie, with a sum that tells damage.
#pragma once

#include <cstddef>
#include <cstdint>

#include "memory.h"
#include "pool.h"

namespace kveik {

// 64 bits that change when any byte does; not meant to withstand an attacker. All threads take
// part.
uint64_t checksum(Pool& pool, const void* data, size_t bytes);

}  // namespace kveik
