// Kernel family: rotary embedding, writing keys and values, paged attention over segments.
//
// A visit (attention_plan.h) brings rows of queries together with the 256 slots of a piece:
//
//   queries   [rows][width]              scaled to base 2, turned to the angle of the segment
//   scores    [16 columns][16 rows][16]  per tile of 16 rows; a column is 16 slots
//   weights   2^(score - m), m the maximum rounded up to an integer, in the place of the scores
//   partial   [16 rows][width]           weights x values of the 256 slots
//   state     (m, sum, values) per row; partial results are added from left to right
//
// Slots that a row does not see get weight 0, whatever their scores are; values of slots that
// nobody sees are zero before they are multiplied. So steps of 32 slots that no row of a tile sees
// can be left out without changing a bit: they would add 0 to sums that are never -0.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "attention_plan.h"
#include "simd.h"
#if KVEIK_AMX
#include "tile.h"
#endif

namespace kveik {
namespace KVEIK_LEVEL {

constexpr int kRows = 16;  // of a tile
constexpr int kStep = 32;  // slots of one step of weights x values
constexpr int kColumns = kSplit / kLanes;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// ---- planes -------------------------------------------------------------------------------------

inline size_t value_bytes(const Arena& arena) { return arena.type == KvType::bf16 ? 2 : 4; }

// One block of one head: keys and values as kernels.h draws them.
inline char* block_of(const Arena& arena, void* plane, int64_t slots, int64_t layer, int64_t head,
                      int64_t block) {
  int64_t piece = (layer * arena.kv_heads + head) * arena.blocks + block;
  return static_cast<char*>(plane) + piece * slots * arena.width * value_bytes(arena);
}
inline char* keys_of(const Arena& arena, int64_t layer, int64_t head, int64_t block) {
  return block_of(arena, arena.keys, arena.block_size, layer, head, block);
}
inline char* values_of(const Arena& arena, int64_t layer, int64_t head, int64_t block) {
  bool odd_pair = arena.type == KvType::bf16 && arena.block_size % 2 == 1;
  return block_of(arena, arena.values, arena.block_size + odd_pair, layer, head, block);
}

// ---- rotary embedding, writing ------------------------------------------------------------------

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
    write_key(arena, line, offset, keys_of(arena, layer, head, block));
    for (int64_t i = 0; i < width; i += kLanes) store(line + i, load(v + from + i, head_dim - i));
    write_value(arena, line, offset, values_of(arena, layer, head, block));
  }
}

// ---- keys and values of a visit -----------------------------------------------------------------

// Where the 256 slots of a visit are read. T: float, or bfloat16 in tile products.
//   float     column [width][stride], values [256][width]
//   bfloat16  column [width / 2][stride][2], values [128][width][2]
template <class T>
struct Slots {
  const T* column[kColumns];  // in the arena itself where sixteen slots lie together
  int64_t stride;
  T* keys;    // room for a copy: [16 columns], stride 16
  T* values;  // slots first .. end are set: copied where somebody sees them, else zero
  int first, end;
  int broken;  // slots whose values are not all finite; these became zero
  int16_t broken_slot[kSplit];
};

constexpr bool by_pairs(const bf16*) { return true; }
constexpr bool by_pairs(const float*) { return false; }

// Calls copy(block, offset, slot, count) for the parts of the piece within slots low .. high.
template <class Copy>
inline void for_runs(const AttentionPlan& plan, int32_t number, int low, int high, Copy copy) {
  const AttentionPlan::Piece& piece = plan.pieces[number];
  for (int32_t r = piece.first_run; r < piece.first_run + piece.runs; ++r) {
    const AttentionPlan::Run& run = plan.runs[r];
    int begin = run.slot > low ? run.slot : low;
    int end = run.slot + run.count <= high ? run.slot + run.count : high + 1;
    if (begin < end) copy(run.block, run.offset + begin - run.slot, begin, end - begin);
  }
}

// count slots of a block of keys to slots of the copy
inline void copy_keys(const Arena& arena, const char* block, int64_t offset, int slot, int count,
                      bf16* keys) {
  for (int at = slot; at < slot + count; ++at, ++offset) {
    char* out = reinterpret_cast<char*>(keys) + (at / 16 * arena.width * 8 + at % 16) * 4;
    const char* in = block + offset * 4;
    for (int64_t pair = 0; pair < arena.width / 2; ++pair) {
      std::memcpy(out + pair * 64, in + pair * arena.block_size * 4, 4);
    }
  }
}
inline float stored_key(const Arena& arena, const char* block, int64_t dimension, int64_t offset) {
  float value;
  if (arena.type == KvType::f32) {
    std::memcpy(&value, block + (dimension * arena.block_size + offset) * 4, 4);
    return value;
  }
  bf16 half;
  int64_t at = (dimension / 2 * arena.block_size + offset) * 2 + dimension % 2;
  std::memcpy(&half, block + at * 2, 2);
  uint32_t bits = uint32_t(half) << 16;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline void copy_keys(const Arena& arena, const char* block, int64_t offset, int slot, int count,
                      float* keys) {
  bool whole = arena.type == KvType::bf16 && slot % 16 == 0 && count % 16 == 0;
  for (int at = slot; whole && at < slot + count; at += 16) {
    float* out = keys + at * arena.width;
    for (int64_t pair = 0; pair < arena.width / 2; ++pair) {
      U32 both;
      std::memcpy(&both, block + (pair * arena.block_size + offset + at - slot) * 4, sizeof both);
      store(out + pair * 32, as_float(both << 16));
      store(out + pair * 32 + 16, as_float(both & 0xffff0000u));
    }
  }
  for (int at = slot; !whole && at < slot + count; ++at) {
    float* out = keys + at / 16 * 16 * arena.width + at % 16;
    for (int64_t i = 0; i < arena.width; ++i) {
      out[i * 16] = stored_key(arena, block, i, offset + at - slot);
    }
  }
}

// Columns of the visit: in place if `direct`, else copied.
template <class T>
inline void find_keys(const AttentionPlan& plan, const AttentionPlan::Visit& visit,
                      const Arena& arena, int64_t layer, int64_t head, bool direct, Slots<T>& s) {
  for (int c = 0; c < kColumns; ++c) s.column[c] = s.keys + c * arena.width * 16;
  s.stride = 16;
  int low = visit.low / 16 * 16, high = visit.high / 16 * 16 + 15;
  for_runs(plan, visit.piece, low, high, [&](int64_t block, int64_t offset, int slot, int count) {
    char* keys = keys_of(arena, layer, head, block);
    if (!direct) return copy_keys(arena, keys, offset, slot, count, s.keys);
    for (int c = slot / 16; c <= (slot + count - 1) / 16; ++c) {
      int64_t first = (offset + 16 * c - slot) * (by_pairs(s.keys) ? 2 : 1);
      s.column[c] = reinterpret_cast<const T*>(keys) + first;
    }
  });
  if (!direct) return;
  s.stride = arena.block_size;
  for (int c = visit.high / 16 + 1; c < kColumns; ++c) s.column[c] = s.column[visit.high / 16];
  for (int c = 0; c < visit.low / 16; ++c) s.column[c] = s.column[visit.low / 16];
}

// count slots of a block of values to slots of the copy [128][width][2]
inline void copy_values(const Arena& arena, const char* block, int64_t offset, int slot, int count,
                        bf16* values) {
  int64_t line = arena.width * 2;
  const auto* from = reinterpret_cast<const bf16*>(block);
  while (count > 0) {
    bf16* out = values + slot / 2 * line + slot % 2;
    const bf16* in = from + offset / 2 * line + offset % 2;
    int now = slot % 2 == 0 && offset % 2 == 0 && count >= 2 ? count / 2 * 2 : 1;
    if (now > 1) {
      std::memcpy(out, in, now * arena.width * sizeof(bf16));
    } else {
      for (int64_t i = 0; i < arena.width; ++i) out[2 * i] = in[2 * i];
    }
    slot += now;
    offset += now;
    count -= now;
  }
}
// ... of the copy [256][width]
inline void copy_values(const Arena& arena, const char* block, int64_t offset, int slot, int count,
                        float* values) {
  float* out = values + slot * arena.width;
  if (arena.type == KvType::f32) {
    const char* in = block + offset * arena.width * 4;
    std::memcpy(out, in, count * arena.width * sizeof(float));
    return;
  }
  for (; count > 0; --count, ++offset, out += arena.width) {
    const char* in = block + offset / 2 * arena.width * 4;
    for (int64_t i = 0; i < arena.width; i += kLanes) {
      U32 both;  // slots offset and its partner
      std::memcpy(&both, in + i * 4, sizeof both);
      store(out + i, as_float(offset % 2 == 0 ? both << 16 : both & 0xffff0000u));
    }
  }
}

typedef uint16_t U16x32 __attribute__((vector_size(64)));
inline U16x32 magnitudes(const bf16* p) {
  U16x32 v;
  std::memcpy(&v, p, sizeof v);
  return v & 0x7fff;
}
inline U32 magnitudes(const float* p) { return as_bits(load(p)) & 0x7fffffffu; }

// Whether some of count values (a multiple of 32) is infinite or not a number.
template <class T>
inline bool any_broken(const T* values, int64_t count) {
  constexpr int lanes = 64 / sizeof(T);
  auto most = magnitudes(values);
  for (int64_t i = lanes; i < count; i += lanes) {
    auto next = magnitudes(values + i);
    most = next > most ? next : most;
  }
  bool broken = false;
  for (int lane = 0; lane < lanes; ++lane) {
    broken |= most[lane] >= (sizeof(T) == 2 ? 0x7f80u : 0x7f800000u);
  }
  return broken;
}

template <class T>
inline void take_out_broken(int64_t width, Slots<T>& s) {
  constexpr int together = by_pairs(static_cast<T*>(nullptr)) ? 2 : 1;
  for (int slot = s.first; slot < s.end; ++slot) {
    T* own = s.values + slot / together * together * width + slot % together;
    bool broken = false;
    for (int64_t i = 0; i < width; ++i) {
      uint32_t bits = 0;
      std::memcpy(&bits, own + i * together, sizeof(T));
      uint32_t exponent = sizeof(T) == 2 ? 0x7f80 : 0x7f800000;
      broken |= (bits & exponent) == exponent;
    }
    if (!broken) continue;
    s.broken_slot[s.broken++] = static_cast<int16_t>(slot);
    for (int64_t i = 0; i < width; ++i) own[i * together] = T{};
  }
}

template <class T>
inline void find_values(const AttentionPlan& plan, const AttentionPlan::Visit& visit,
                        const Arena& arena, int64_t layer, int64_t head, Slots<T>& s) {
  int64_t width = arena.width;
  s.first = visit.low / kStep * kStep;
  s.end = (visit.high / kStep + 1) * kStep;
  int low = (visit.low + 1) / 2 * 2, high = (visit.high + 1) / 2 * 2;  // whole pairs
  std::memset(s.values + s.first * width, 0, (low - s.first) * width * sizeof(T));
  std::memset(s.values + high * width, 0, (s.end - high) * width * sizeof(T));
  auto copy = [&](int64_t block, int64_t offset, int slot, int count) {
    copy_values(arena, values_of(arena, layer, head, block), offset, slot, count, s.values);
  };
  for_runs(plan, visit.piece, visit.low, visit.high, copy);
  s.broken = 0;
  if (any_broken(s.values + s.first * width, (s.end - s.first) * width)) take_out_broken(width, s);
}

// ---- softmax ------------------------------------------------------------------------------------

// Scores of a tile: [16 columns][16 rows][16]; one row is a line in every column.
constexpr int kLine = kRows * kLanes;

// Up to 16 query rows on their way through a visit, one per lane.
struct alignas(64) Tile {
  int first[kRows], seen[kRows];  // the slots that a row sees: the first one, how many
  float top[kRows];               // the maximum of its scores, rounded up to an integer
  float shift[kRows];             // see power_of_two
  float total[kRows];             // the sum of its weights
  F32 sums[kRows];                // the same lane by lane
  int rows;
  int from, to;  // slots that every row sees
};

// 2^(score - top) for scores up to top; 0 below 2^-126; what is not a number stays so.
// Adding shift = kShift - top rounds to an integer and leaves it in the low bits, beside the bias
// of the exponent. (Beyond 2^24, where that is no longer exact, nor are scores: one slot has it
// all.) Weights that become bfloat16 need fewer digits.
constexpr float kShift = 12582912.0f + 127.0f;  // 1.5 * 2^23
template <class T>
inline F32 power_of_two(F32 score, float top, float shift) {
  F32 shifted = score + shift;
  F32 r = score - (shifted - shift);
  F32 p;
  if (sizeof(T) == 2) {
    p = all(5.5171669e-2f) * r + 2.4261113e-1f;
    p = p * r + 6.9326097e-1f;
    p = p * r + 9.9992806e-1f;
  } else {
    p = all(1.3276472e-3f) * r + 9.6755419e-3f;
    p = p * r + 5.5507131e-2f;
    p = p * r + 2.4022120e-1f;
    p = p * r + 6.9314694e-1f;
    p = p * r + 1.0000001f;
  }
  F32 value = p * as_float(as_bits(shifted) << 23);
  return score < top - 126.0f ? F32{} : value;
}

// 2^(a - b) for integers a <= b, or a = -infinity
inline F32 power_between(F32 a, F32 b) {
  F32 exponent = a - b;
  F32 bounded = exponent >= -126.0f ? exponent : all(-126.0f);
  F32 value = as_float((U32)((__builtin_convertvector(bounded, I32) + 127) << 23));
  value = exponent < -126.0f ? F32{} : value;
  return exponent == exponent ? value : exponent;
}

// Scores of a step that a row does not see become -infinity, whatever they were.
inline void hide(const Tile& tile, int step, float* scores) {
  const U32 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int row = 0; row < tile.rows; ++row) {
    auto first = static_cast<uint32_t>(tile.first[row]);
    auto seen = static_cast<uint32_t>(tile.seen[row]);
    for (int c = 2 * step; c < 2 * step + 2; ++c) {
      float* line = scores + c * kLine + row * kLanes;
      store(line, lanes + c * kLanes - first < seen ? load(line) : all(-kInfinity));
    }
  }
}

// All scores are there, in steps begin .. end.
inline void find_tops(int begin, int end, const float* scores, Tile& tile) {
  for (int row = 0; row < tile.rows; ++row) {
    const float* line = scores + 2 * begin * kLine + row * kLanes;
    F32 most[2] = {load(line), load(line + kLine)};
    for (int step = begin + 1; step < end; ++step) {
      line += 2 * kLine;
      most[0] = larger(most[0], load(line));
      most[1] = larger(most[1], load(line + kLine));
    }
    tile.top[row] = largest(larger(most[0], most[1]));
  }
  for (int row = 0; row < kRows; ++row) {
    // -infinity: a key is broken, or the row sees nothing and nobody asks for its result
    tile.top[row] = tile.top[row] > -kInfinity ? std::ceil(tile.top[row]) : kNan;
    tile.shift[row] = kShift - tile.top[row];
    tile.sums[row] = F32{};
  }
}

inline void put_weights(float* line, F32 left, F32 right, float) {
  store(line, left);
  store(line + kLine, right);
}
// bfloat16: the 32 weights of a step in the line of its first column
inline void put_weights(float* line, F32 left, F32 right, bf16) {
  store(reinterpret_cast<bf16*>(line), left, right);
}

// Scores of one step become weights of type T.
template <class T>
inline void weigh(int step, float* scores, Tile& tile) {
  for (int row = 0; row < tile.rows; ++row) {
    float* line = scores + 2 * step * kLine + row * kLanes;
    F32 left = power_of_two<T>(load(line), tile.top[row], tile.shift[row]);
    F32 right = power_of_two<T>(load(line + kLine), tile.top[row], tile.shift[row]);
    tile.sums[row] += left + right;
    put_weights(line, left, right, T{});
  }
}

// ---- products -----------------------------------------------------------------------------------

#if KVEIK_AMX

// bfloat16 in tiles. Keys and values are loaded past the first-level cache, which the scores fill.
struct TileProducts {
  using Element = bf16;

  static void configure_tiles() { configure(product_tiles(kRows, kRows)); }
  static bool reads_in_place(const Arena&, bool by_tile) { return by_tile; }

  // Scores of 16 rows and slots s.first .. s.end. queries [rows][width].
  // Tiles 0, 1: sums; 4, 5: rows (operand A); 2, 3, 6, 7: keys (operand B).
  static void score(const bf16* queries, int64_t width, int, const Slots<bf16>& s, float* scores) {
    if (width == 64) return score_64(queries, s, scores);
    for (int c = s.first / kLanes; c < s.end / kLanes; c += 2) {
      _tile_zero(0);
      _tile_zero(1);
      for (int64_t i = 0; i < width; i += 32) {
        _tile_loadd(4, queries + i, width * sizeof(bf16));
        _tile_loadd(6, s.column[c] + i * s.stride, s.stride * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, s.column[c + 1] + i * s.stride, s.stride * 4);
        _tile_dpbf16ps(1, 4, 7);
      }
      _tile_stored(0, scores + c * kLine, 64);
      _tile_stored(1, scores + c * kLine + kLine, 64);
    }
  }

  // The same with rows that stay in their tiles.
  static void score_64(const bf16* queries, const Slots<bf16>& s, float* scores) {
    int64_t bytes = s.stride * 4, half = 32 * s.stride;
    _tile_loadd(4, queries, 128);
    _tile_loadd(5, queries + 32, 128);
    for (int c = s.first / kLanes; c < s.end / kLanes; c += 2) {
      const bf16 *left = s.column[c], *right = s.column[c + 1];
      _tile_zero(0);
      _tile_zero(1);
      _tile_stream_loadd(2, left, bytes);
      _tile_dpbf16ps(0, 4, 2);
      _tile_stream_loadd(3, right, bytes);
      _tile_dpbf16ps(1, 4, 3);
      _tile_stream_loadd(6, left + half, bytes);
      _tile_dpbf16ps(0, 5, 6);
      _tile_stream_loadd(7, right + half, bytes);
      _tile_dpbf16ps(1, 5, 7);
      _tile_stored(0, scores + c * kLine, 64);
      _tile_stored(1, scores + c * kLine + kLine, 64);
    }
  }

  // partial [16][width] = weights x values, 64 (or the last 32) dimensions at a time.
  // weigh(step, first row, end row) makes weights: those of the next step while this one
  // multiplies. Tiles 0..3: sums, 4: weights (operand A), 5 and 6: values (operand B).
  template <int sums, class Weigh>
  static void combine(const float* weights, int64_t width, const bf16* values, const Slots<bf16>& s,
                      float* partial, Weigh weigh) {
    int64_t bytes = width * 4;
    int end = s.end / kStep;
    _tile_zero(0);
    _tile_zero(1);
    if (sums == 4) _tile_zero(2);
    if (sums == 4) _tile_zero(3);
    weigh(s.first / kStep);
    for (int step = s.first / kStep; step < end; ++step) {
      const bf16* own = values + step * kStep * width;
      if (step + 1 < end) weigh(step + 1);
      _tile_loadd(4, weights + 2 * step * kLine, 64);
      _tile_stream_loadd(5, own, bytes);
      _tile_dpbf16ps(0, 4, 5);
      _tile_stream_loadd(6, own + 32, bytes);
      _tile_dpbf16ps(1, 4, 6);
      if (sums == 4) _tile_stream_loadd(5, own + 64, bytes);
      if (sums == 4) _tile_dpbf16ps(2, 4, 5);
      if (sums == 4) _tile_stream_loadd(6, own + 96, bytes);
      if (sums == 4) _tile_dpbf16ps(3, 4, 6);
    }
    _tile_stored(0, partial, bytes);
    _tile_stored(1, partial + kLanes, bytes);
    if (sums == 4) _tile_stored(2, partial + 2 * kLanes, bytes);
    if (sums == 4) _tile_stored(3, partial + 3 * kLanes, bytes);
  }
  template <class Weigh>
  static void combine(const float* weights, int64_t width, int, const Slots<bf16>& s,
                      float* partial, Weigh weigh) {
    auto weighed = [](int) {};
    if (width == 32) return combine<2>(weights, width, s.values, s, partial, weigh);
    combine<4>(weights, width, s.values, s, partial, weigh);
    int64_t i = 64;
    for (; i + 64 <= width; i += 64) {
      combine<4>(weights, width, s.values + 2 * i, s, partial + i, weighed);
    }
    if (i < width) combine<2>(weights, width, s.values + 2 * i, s, partial + i, weighed);
  }
};

#endif

// float32 in vectors: sums of one lane run along the dimensions, or the slots, one by one.
struct VectorProducts {
  using Element = float;

  static void configure_tiles() {}
  static bool reads_in_place(const Arena& arena, bool by_tile) {
    return by_tile && arena.type == KvType::f32;
  }

  template <int count>
  static void score_rows(const float* queries, int64_t width, const Slots<float>& s, float* out) {
    for (int c = s.first / kLanes; c < s.end / kLanes; c += 2) {
      F32 sums[2][count] = {};
      const float *left = s.column[c], *right = s.column[c + 1];
      for (int64_t i = 0; i < width; ++i) {
        F32 keys[2] = {load(left + i * s.stride), load(right + i * s.stride)};
        for (int row = 0; row < count; ++row) {
          sums[0][row] += keys[0] * queries[row * width + i];
          sums[1][row] += keys[1] * queries[row * width + i];
        }
      }
      for (int row = 0; row < count; ++row) {
        store(out + c * kLine + row * kLanes, sums[0][row]);
        store(out + (c + 1) * kLine + row * kLanes, sums[1][row]);
      }
    }
  }
  static void score(const float* queries, int64_t width, int rows, const Slots<float>& s,
                    float* scores) {
    int row = 0;
    for (; row + 4 <= rows; row += 4) {
      score_rows<4>(queries + row * width, width, s, scores + row * kLanes);
    }
    for (; row < rows; ++row) {
      score_rows<1>(queries + row * width, width, s, scores + row * kLanes);
    }
  }

  template <int count>
  static void combine_rows(const float* weights, int64_t width, const Slots<float>& s, float* out) {
    for (int64_t i = 0; i < width; i += 2 * kLanes) {
      F32 sums[2][count] = {};
      for (int slot = s.first; slot < s.end; ++slot) {
        const float* values = s.values + slot * width + i;
        F32 both[2] = {load(values), load(values + kLanes)};
        const float* own = weights + slot / kLanes * kLine + slot % kLanes;
        for (int row = 0; row < count; ++row) {
          sums[0][row] += both[0] * own[row * kLanes];
          sums[1][row] += both[1] * own[row * kLanes];
        }
      }
      for (int row = 0; row < count; ++row) {
        store(out + row * width + i, sums[0][row]);
        store(out + row * width + i + kLanes, sums[1][row]);
      }
    }
  }
  template <class Weigh>
  static void combine(const float* weights, int64_t width, int rows, const Slots<float>& s,
                      float* partial, Weigh weigh) {
    for (int step = s.first / kStep; step < s.end / kStep; ++step) weigh(step);
    int row = 0;
    for (; row + 4 <= rows; row += 4) {
      combine_rows<4>(weights + row * kLanes, width, s, partial + row * width);
    }
    for (; row < rows; ++row) {
      combine_rows<1>(weights + row * kLanes, width, s, partial + row * width);
    }
  }
};

// ---- items --------------------------------------------------------------------------------------

// Memory of one worker for one item of `rows` query rows.
template <class T>
struct Room {
  T* queries;      // [rows + 16][width]
  float* sums;     // [rows][width]: weighted values
  float* tops;     // [rows + 16]: the maximum so far, an integer
  float* totals;   // [rows + 16]: the sum of weights so far
  float* scores;   // [16 columns][16 rows][16]
  float* partial;  // [16][width]
  float* line;     // [width]
  Tile* tile;
  Slots<T>* slots;

  static constexpr size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

  Room(Worker& w, int64_t rows, int64_t width) {
    size_t line = width * sizeof(float), per_row = (rows + kRows) * sizeof(float);
    size_t split = kSplit * width * sizeof(T);
    size_t sizes[] = {(rows + kRows) * width * sizeof(T),
                      rows * line,
                      per_row,
                      per_row,
                      kColumns * kLine * sizeof(float),
                      kRows * line,
                      line,
                      sizeof(Tile),
                      sizeof(Slots<T>),
                      split,
                      split};
    size_t total = 0;
    for (size_t& size : sizes) total += aligned(size);
    char* memory = static_cast<char*>(w.scratch(total));
    size_t which = 0;
    auto next = [&](auto*& pointer) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(memory);
      memory += aligned(sizes[which++]);
    };
    next(queries);
    next(sums);
    next(tops);
    next(totals);
    next(scores);
    next(partial);
    next(this->line);
    next(tile);
    next(slots);
    next(slots->keys);
    next(slots->values);
  }
};

// The queries of one item and KV head, on their way from left to right.
template <class Products>
struct ItemHead {
  using T = typename Products::Element;
  const AttentionPlan& plan;
  const AttentionPlan::Item& item;
  const Arena& arena;
  const float* q;
  int64_t layer, head;
  Room<T>& room;

  int64_t share() const { return plan.heads_per_kv_head; }
  // Calls visit(query, row of the item, offset in q and y) for query rows first .. first + count:
  // the heads of one row lie side by side.
  template <class Visit>
  void for_queries(int64_t first, int64_t count, Visit visit) const {
    int64_t row = first / share(), head_in_row = first % share();
    for (int64_t query = first; query < first + count; ++query) {
      int64_t at = plan.item_rows[item.first_row + row] * plan.spec.heads + head * share();
      visit(query, row, (at + head_in_row) * plan.spec.head_dim);
      if (++head_in_row == share()) {
        head_in_row = 0;
        ++row;
      }
    }
  }

  void start() {
    int64_t rows = item.rows * share();
    for (int64_t row = 0; row < rows; ++row) {
      room.tops[row] = -kInfinity;
      room.totals[row] = 0;
    }
    std::memset(room.sums, 0, rows * arena.width * sizeof(float));
  }

  void turn(const AttentionPlan::Visit& visit) {
    float factor = plan.spec.scale * 1.44269504f;  // scores in base 2
    int64_t first = visit.begin * share(), count = visit.end * share() - first;
    for_queries(first, count, [&](int64_t query, int64_t row, int64_t offset) {
      const auto& seen = plan.seen[visit.first_seen + row - visit.begin];
      if (seen.last < seen.first) return;
      T* out = room.queries + query * arena.width;
      turn_row(plan, q + offset, factor, seen.angle, arena.width, room.line);
      for (int64_t i = 0; i < arena.width; i += kLanes) store(out + i, load(room.line + i));
    });
  }

  void meet(const AttentionPlan::Visit& visit) {
    if (visit.turn) turn(visit);
    Slots<T>& slots = *room.slots;
    bool in_place = Products::reads_in_place(arena, plan.pieces[visit.piece].by_tile);
    find_keys(plan, visit, arena, layer, head, in_place, slots);
    find_values(plan, visit, arena, layer, head, slots);
    int64_t end = visit.end * share();
    for (int64_t query = visit.begin * share(); query < end; query += kRows) {
      int64_t rows = end - query < kRows ? end - query : kRows;
      meet(visit, query, static_cast<int>(rows), slots);
    }
  }

  // Up to 16 query rows of the visit, from `query` on.
  void meet(const AttentionPlan::Visit& visit, int64_t query, int rows, Slots<T>& slots) {
    Tile& tile = *room.tile;
    if (!begin(visit, query, rows, slots)) return;
    int first = slots.first / kStep, end = slots.end / kStep;
    Products::score(room.queries + query * arena.width, arena.width, rows, slots, room.scores);
    for (int step = first; step < end; ++step) {
      bool whole = step * kStep >= tile.from && step * kStep + kStep - 1 <= tile.to;
      if (!whole) hide(tile, step, room.scores);
    }
    find_tops(first, end, room.scores, tile);
    Products::combine(room.scores, arena.width, rows, slots, room.partial,
                      [&](int step) { weigh<T>(step, room.scores, tile); });
    for (int row = 0; row < rows; ++row) tile.total[row] = sum(tile.sums[row]);
    for (int row = 0; slots.broken > 0 && row < rows; ++row) {
      if (sees_broken(tile, row, slots)) tile.total[row] = kNan;
    }
    merge(query);
  }

  // What the rows see; false where that is nothing.
  bool begin(const AttentionPlan::Visit& visit, int64_t query, int rows, Slots<T>& slots) {
    Tile& tile = *room.tile;
    tile.rows = rows;
    tile.from = 0;
    tile.to = kSplit - 1;
    int low = kSplit, high = -1;
    const AttentionPlan::Seen* seen = &plan.seen[visit.first_seen] + query / share() - visit.begin;
    int64_t head_in_row = query % share();
    for (int row = 0; row < kRows; ++row) tile.seen[row] = 0;
    for (int row = 0; row < rows; ++row) {
      int first = seen->first, last = seen->last;
      tile.first[row] = first;
      tile.seen[row] = last - first + 1;
      tile.from = first > tile.from ? first : tile.from;
      tile.to = last < tile.to ? last : tile.to;
      if (last >= first) low = first < low ? first : low;
      if (last >= first) high = last > high ? last : high;
      if (++head_in_row == share()) {
        head_in_row = 0;
        ++seen;
      }
    }
    slots.first = low / kStep * kStep;
    slots.end = (high / kStep + 1) * kStep;
    return high >= 0;
  }

  static bool sees_broken(const Tile& tile, int row, const Slots<T>& slots) {
    for (int i = 0; i < slots.broken; ++i) {
      int slot = slots.broken_slot[i] - tile.first[row];
      if (slot >= 0 && slot < tile.seen[row]) return true;
    }
    return false;
  }

  // Milakov and Gimelshein 2018: two partial results under their common maximum.
  void merge(int64_t query) {
    const Tile& tile = *room.tile;
    I32 seen;
    std::memcpy(&seen, tile.seen, sizeof seen);
    F32 before = load(room.tops + query), after = load(tile.top);
    F32 common = larger(after, before);
    alignas(64) float old[kRows], now[kRows];
    store(old, power_between(before, common));
    store(now, power_between(after, common));
    F32 total = load(room.totals + query);
    F32 merged = total * load(old) + load(tile.total) * load(now);
    store(room.tops + query, seen > 0 ? common : before);
    store(room.totals + query, seen > 0 ? merged : total);
    for (int row = 0; row < tile.rows; ++row) {
      if (tile.seen[row] == 0) continue;
      float* sums = room.sums + (query + row) * arena.width;
      const float* partial = room.partial + row * arena.width;
      for (int64_t i = 0; i < arena.width; i += kLanes) {
        // what is added is never -0
        store(sums + i, load(sums + i) * old[row] + (load(partial + i) + 0.0f) * now[row]);
      }
    }
  }

  void finish(float* y) {
    for_queries(0, item.rows * share(), [&](int64_t query, int64_t, int64_t offset) {
      float total = room.totals[query], factor = total == 0 ? 0.0f : 1.0f / total;
      const float* sums = room.sums + query * arena.width;
      for (int64_t i = 0; i < plan.spec.head_dim; i += kLanes) {
        F32 value = total == total ? load(sums + i) * factor : all(kNan);
        store(y + offset + i, value, plan.spec.head_dim - i);
      }
    });
  }
};

template <class Products>
inline void attend(const float* q, const Arena& arena, int64_t layer, const AttentionPlan& plan,
                   float* y, Worker& w) {
  int64_t heads = plan.spec.kv_heads, total = static_cast<int64_t>(plan.items.size()) * heads;
  Room<typename Products::Element> room(w, plan.largest_item * plan.heads_per_kv_head, arena.width);
  Products::configure_tiles();
  for (int64_t at = w.claim(); at < total; at = w.claim()) {
    const AttentionPlan::Item& item = plan.items[at / heads];
    ItemHead<Products> own{plan, item, arena, q, layer, at % heads, room};
    own.start();
    for (int32_t v = item.first_visit; v < item.first_visit + item.visits; ++v) {
      own.meet(plan.visits[v]);
    }
    own.finish(y);
  }
}

inline void attention(const float* q, const Arena& arena, int64_t layer, const AttentionPlan& plan,
                      float* y, Worker& w) {
#if KVEIK_AMX
  if (arena.type == KvType::bf16) return attend<TileProducts>(q, arena, layer, plan, y, w);
#endif
  attend<VectorProducts>(q, arena, layer, plan, y, w);
}

}  // namespace KVEIK_LEVEL
}  // namespace kveik
