// What bfloat16 products read: rows of x, rounded and laid out for the level.
//
// The operand is x rounded to bfloat16, padded with zeros to a multiple of 128 inputs:
//
//   amx, avx512_bf16   in tile order, one operand A of a tile product after the other; bfloat16
//                      rows <= 16:  [in_padded / 32][rows][32]
//                      else         [rows / 16, rounded up][in_padded / 32][16][32]
//   elsewhere          [rows][in_padded], the same values as float32
#pragma once

#include "simd.h"

namespace kveik {
namespace KVEIK_LEVEL {

#if KVEIK_AMX || KVEIK_PAIRS
using Operand = bf16;
#else
using Operand = float;
#endif

inline int64_t padded(int64_t count, int64_t grain) { return (count + grain - 1) / grain * grain; }

inline size_t operand_bytes_bf16(int64_t rows, int64_t in) {
  return padded(rows, 16) * padded(in, 128) * sizeof(Operand);
}

// Where row `row` has input i; those up to the next multiple of 32 follow.
inline Operand* operand_at(void* operand, int64_t rows, int64_t width, int64_t row, int64_t i) {
  auto* start = static_cast<Operand*>(operand);
#if KVEIK_AMX || KVEIK_PAIRS
  int64_t lines = rows < 16 ? rows : 16;
  return start + row / 16 * 16 * width + (i / 32 * lines + row % 16) * 32 + i % 32;
#else
  (void)rows;
  return start + row * width + i;
#endif
}

inline void put_operand(Operand* out, const F32& v) {
#if KVEIK_AMX || KVEIK_PAIRS
  store(out, v);
#else
  store(out, through_bf16(v));
#endif
}

// ---- what products are cut into ----------------------------------------------------------------

constexpr int64_t kPanel = 32;     // columns
constexpr int64_t kStepBf16 = 32;  // inputs of one tile of bfloat16
constexpr int64_t kTile = 512;     // bfloat16 values

// Sums of some rows x one panel: [rows][32] float32 in a worker's scratch.
using Sums = float*;

// What follows in memory, fetched a few lines at a time: to the second-level cache, or `near`, to
// the first, where it is multiplied soon and once.
struct Ahead {
  const char* next;
  const char* end;
  int64_t lines;  // per step
  bool near = false;

  void fetch() {
    for (int64_t i = 0; i < lines && next < end; ++i, next += 64) {
      if (near) {
        __builtin_prefetch(next, 0, 3);
      } else {
        __builtin_prefetch(next, 0, 2);
      }
    }
  }
};

// Stretches of panels that a worker takes in a row where memory sets the pace: what it fetches
// ahead is then its own. They grow shorter towards the end, so that workers end together.
struct Stretches {
  int64_t panels, longest, workers, count = 0;

  Stretches(int64_t panels_, int64_t panel_bytes, const Worker& w)
      : panels(panels_), workers(w.count) {
    constexpr int64_t kStretch = 512 << 10;
    longest = panel_bytes < kStretch ? kStretch / panel_bytes : 1;
    for (int64_t at = 0; at < panels; at += length(at)) ++count;
  }

  // Of the stretch that begins at a panel.
  int64_t length(int64_t begin) const {
    int64_t share = (panels - begin) / (2 * workers);
    return share < 1 ? 1 : share < longest ? share : longest;
  }
  int64_t begin(int64_t number) const {
    int64_t at = 0;
    while (number-- > 0) at += length(at);
    return at;
  }
  int64_t end(int64_t number) const {
    int64_t at = begin(number);
    return at + length(at);
  }
};

// Rows row .. row + count x one panel, over inputs from .. to (multiples of 32).
struct Part {
  int64_t row, count, from, to;
};

}  // namespace KVEIK_LEVEL
}  // namespace kveik
