// Tile products for bfloat16 and int8 (Sapphire Rapids and later).
#include "kernels.h"

#if (defined(__AMX_BF16__) || KVEIK_EMULATE_TILES) && defined(__AVX512BF16__)

#define KVEIK_LEVEL amx
#define KVEIK_AMX 1
#define KVEIK_VNNI 1
#include "levels/level.h"

namespace kveik {
const Kernels* amx_kernels() { return &amx::kTable; }
}  // namespace kveik

#else

namespace kveik {
const Kernels* amx_kernels() { return nullptr; }
}  // namespace kveik

#endif
