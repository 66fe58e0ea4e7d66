// Whatever the compiler makes of vectors on this machine: SSE2 on any x86-64, NEON on ARM.
#include "kernels.h"

#define KVEIK_LEVEL portable
#include "levels/level.h"

namespace kveik {
const Kernels* portable_kernels() { return &portable::kTable; }
}  // namespace kveik
