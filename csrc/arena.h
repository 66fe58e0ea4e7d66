// Memory for the keys and values of one KvGroup, laid out as kernels.h draws it.
#pragma once

#include "kernels.h"
#include "memory.h"

namespace kveik {

// An arena and its memory, which is taken as blocks are first written.
struct ArenaMemory {
  Arena arena{};
  Buffer memory;

  // Zeroed. Throws std::invalid_argument for a size below 1, std::bad_alloc.
  ArenaMemory(KvType type, int64_t layers, int64_t kv_heads, int64_t blocks, int64_t block_size,
              int64_t head_dim);
};

inline const Arena& arena_of(const ArenaMemory& memory) { return memory.arena; }

// Slots 0 .. slots of block `source` become those of `target`, in every layer and head.
// Both throw std::out_of_range, before anything is written, for what the arena does not have.
void copy_block(const Arena& arena, int64_t source, int64_t target, int64_t slots);
// Zeros in every slot of the block, in every layer and head.
void erase_block(const Arena& arena, int64_t block);

}  // namespace kveik
