// AVX-512 with VNNI and products of bfloat16 pairs (Zen 4, Cooper Lake and later).
#include "kernels.h"

#if defined(__AVX512F__) && defined(__AVX512VNNI__) && defined(__AVX512BF16__)

#define KVEIK_LEVEL avx512_bf16
#define KVEIK_PAIRS 1
#define KVEIK_VNNI 1
#include "levels/level.h"

namespace kveik {
const Kernels* avx512_bf16_kernels() { return &avx512_bf16::kTable; }
}  // namespace kveik

#else

namespace kveik {
const Kernels* avx512_bf16_kernels() { return nullptr; }
}  // namespace kveik

#endif
