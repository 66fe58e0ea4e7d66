// Python's side of arenas: the class Arena.
#pragma once

#include "bindings.h"

namespace kveik {

// An arena and the memory of its two planes.
struct ArenaMemory {
  Arena arena{};
  Buffer keys, values;
};

inline const Arena& arena_of(const ArenaMemory& memory) { return memory.arena; }

void bind_arena(nb::module_& m);

}  // namespace kveik
