// Tile registers (Intel AMX): configuration and the loops' few verbs. Only level amx includes it.
#pragma once

#if KVEIK_EMULATE_TILES
#include "tile_emulated.h"
#else
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

namespace kveik {
namespace KVEIK_LEVEL {

// Shapes of the eight tile registers; 64 bytes is the width of every row.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int row_count, int bytes = 64) {
    rows[tile] = static_cast<uint8_t>(row_count);
    row_bytes[tile] = static_cast<uint16_t>(bytes);
  }
};

inline void configure(const TileConfig& config) { _tile_loadconfig(&config); }

// Eight empty instructions behind a load or a product of a tile. Where another thread runs on the
// same core, a loop of nothing but tiles fills the queues that both share and gets its turn less
// often: with them it is up to 1.5 times faster there, and as fast as without where it is alone.
inline void give_way() {
#if defined(__x86_64__) && defined(__GNUC__)
  __asm__ volatile(".rept 8\n\tnop\n\t.endr");
#endif
}

// For products of a upper and b lower rows of A (1..16 each; b may be 0) with two tiles of B:
// tiles 0..3 are sums (upper: 0, 1; lower: 2, 3), 4 and 5 hold A, 6 and 7 hold B.
inline TileConfig product_tiles(int upper, int lower) {
  TileConfig config;
  int second = lower > 0 ? lower : 1;
  for (int tile : {0, 1, 4}) config.set(tile, upper);
  for (int tile : {2, 3, 5}) config.set(tile, second);
  for (int tile : {6, 7}) config.set(tile, 16);
  return config;
}

}  // namespace KVEIK_LEVEL
}  // namespace kveik
