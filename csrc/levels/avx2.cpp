// AVX2 with FMA (Haswell, Zen and later).
#include "kernels.h"

#if defined(__AVX2__) && defined(__FMA__)

#define KVEIK_LEVEL avx2
#define KVEIK_NIBBLE_PAIRS 1
#include "levels/level.h"

namespace kveik {
const Kernels* avx2_kernels() { return &avx2::kTable; }
}  // namespace kveik

#else

namespace kveik {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace kveik

#endif
