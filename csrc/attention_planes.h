// How the keys and values of new tokens get into the arena, whose pieces kernels.h draws.
//
// A key is stored turned to its home position, so that it serves every
// segment that shows it; the queries are turned to meet it, by the same turn_row. What is stored is
// a function of the row alone. Padding from head_dim to width is written as zero.
#pragma once

#include <cstring>

#include "attention_plan.h"
#include "simd.h"

namespace kveik {
namespace KVEIK_LEVEL {

// ---- rotary embedding ---------------------------------------------------------------------------

// factor * x [head_dim], turned by an angle of the plan (half-split order of dimensions, Su et al.
// 2021); zero behind: out [width].
inline void turn_row(const AttentionPlan& plan, const float* x, float factor, int32_t angle,
                     int64_t width, float* out) {
  int64_t half = plan.spec.rope.half, head_dim = plan.spec.head_dim;
  const float* cosines = half > 0 ? plan.cosines(angle) : nullptr;
  for (int64_t i = 0; i < half; i += kLanes) {
    int64_t n = half - i;
    F32 cosine = load(cosines + i, n), sine = load(cosines + half + i, n);
    F32 first = load(x + i, n) * factor, second = load(x + half + i, n) * factor;
    store(out + i, first * cosine - second * sine, n);
    store(out + half + i, second * cosine + first * sine, n);
  }
  for (int64_t i = 2 * half; i < width; i += kLanes) {
    store(out + i, load(x + i, head_dim - i) * factor, width - i);
  }
}

// ---- writing ------------------------------------------------------------------------------------

// row [width] becomes dimension pairs of slot `offset`: block [width / 2][block_size][2], or
// [width][block_size]
inline void write_key(const Arena& arena, const float* row, int64_t offset, char* block) {
  for (int64_t i = 0; i < arena.width; i += kLanes) {
    if (arena.type == KvType::f32) {
      auto* out = reinterpret_cast<float*>(block) + i * arena.block_size + offset;
      for (int lane = 0; lane < kLanes; ++lane) out[lane * arena.block_size] = row[i + lane];
    } else {
      bf16 rounded[kLanes];
      store(rounded, load(row + i));
      char* out = block + (i / 2 * arena.block_size + offset) * 4;
      for (int pair = 0; pair < kLanes / 2; ++pair) {
        std::memcpy(out + pair * arena.block_size * 4, rounded + 2 * pair, 4);
      }
    }
  }
}

// row [width] becomes slot `offset`: block [block_size / 2][width][2], or [block_size][width]
inline void write_value(const Arena& arena, const float* row, int64_t offset, char* block) {
  for (int64_t i = 0; i < arena.width; i += kLanes) {
    if (arena.type == KvType::f32) {
      store(reinterpret_cast<float*>(block) + offset * arena.width + i, load(row + i));
    } else {
      bf16 rounded[kLanes];
      store(rounded, load(row + i));
      auto* out = reinterpret_cast<bf16*>(block) + (offset / 2 * arena.width + i) * 2 + offset % 2;
      for (int lane = 0; lane < kLanes; ++lane) out[2 * lane] = rounded[lane];
    }
  }
}

inline void rope_write_kv(const float* k, const float* v, const Arena& arena, int64_t layer,
                          const AttentionPlan& plan, Worker& w) {
  int64_t rows = static_cast<int64_t>(plan.slots.size());
  int64_t heads = arena.kv_heads, head_dim = plan.spec.head_dim, width = arena.width;
  auto* line = static_cast<float*>(w.scratch(width * sizeof(float)));
  Share own = share(w, rows * heads);
  for (int64_t at = own.begin; at < own.end; ++at) {
    int64_t head = at / rows, row = at % rows, from = (row * heads + head) * head_dim;
    int64_t block = plan.slots[row] / arena.block_size, offset = plan.slots[row] % arena.block_size;
    turn_row(plan, k + from, 1.0f, plan.key_angles[row], width, line);
    write_key(arena, line, offset, arena.keys(layer, head, block));
    for (int64_t i = 0; i < width; i += kLanes) store(line + i, load(v + from + i, head_dim - i));
    write_value(arena, line, offset, arena.values(layer, head, block));
  }
}

}  // namespace KVEIK_LEVEL
}  // namespace kveik
