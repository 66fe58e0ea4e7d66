// AVX-512 with VNNI (Ice Lake, Zen 4 and later).
#include "kernels.h"

#if defined(__AVX512F__) && defined(__AVX512VNNI__)

#define KVEIK_LEVEL avx512
#define KVEIK_VNNI 1
#include "levels/level.h"

namespace kveik {
const Kernels* avx512_kernels() { return &avx512::kTable; }
}  // namespace kveik

#else

namespace kveik {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace kveik

#endif
