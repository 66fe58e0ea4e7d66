// Python's side of arenas: the class Arena.
#pragma once

#include "arena.h"
#include "bindings.h"

namespace kveik {

void bind_arena(nb::module_& m);

}  // namespace kveik
