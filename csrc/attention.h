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
// nobody sees are zero before they are multiplied. So steps of 32 slots that no row of a strip sees
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

constexpr int kRows = 16;   // of a tile
constexpr int kStrip = 32;  // rows that are multiplied at once: two tiles
constexpr int kStep = 32;   // slots of one step of weights x values
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
constexpr int kTileScores = kColumns * kLine;

// One row on its way through a visit.
struct Row {
  int first, count;  // the slots that it sees
  float top;         // the maximum of its scores, rounded up to an integer
  float low, shift;  // what its scores are compared with: see power_of_two
};

// What the rows of a strip find in a piece.
struct alignas(64) Strip {
  F32 most[kStrip];  // lane by lane: the largest scores, then the sums of weights
  Row rows[kStrip];
  int count;
  int from, to;  // slots from .. to are seen by every row
};

// 2^(score - low) for score - low <= 1/2; 0 below 2^-126; what is not a number stays so.
// Adding `shift` = 1.5 * 2^23 + 127 - low rounds to an integer and leaves it in the low bits,
// beside the bias of the exponent.
inline F32 power_of_two(F32 score, const Row& row) {
  F32 shifted = score + row.shift;
  F32 r = score - (shifted - row.shift);
  F32 p = all(1.3276472e-3f);
  p = p * r + 9.6755419e-3f;
  p = p * r + 5.5507131e-2f;
  p = p * r + 2.4022120e-1f;
  p = p * r + 6.9314694e-1f;
  p = p * r + 1.0000001f;
  F32 value = p * as_float(as_bits(shifted) << 23);
  return score < row.low - 126.0f ? F32{} : value;
}

// 2^(a - b) for integers a <= b, or a = -infinity
inline float power_between(float a, float b) {
  if (!(a - b >= -126.0f)) return a - b != a - b ? kNan : 0.0f;
  uint32_t bits = static_cast<uint32_t>(static_cast<int>(a - b) + 127) << 23;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float* line_of(float* scores, int row, int column) {
  return scores + row / kRows * kTileScores + column * kLine + row % kRows * kLanes;
}

// Scores that a row does not see become -infinity, whatever they were.
inline void hide(const Strip& strip, int step, float* scores) {
  const U32 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  for (int row = 0; row < strip.count; ++row) {
    auto first = static_cast<uint32_t>(strip.rows[row].first);
    auto count = static_cast<uint32_t>(strip.rows[row].count);
    for (int c = 2 * step; c < 2 * step + 2; ++c) {
      float* line = line_of(scores, row, c);
      store(line, lanes + c * kLanes - first < count ? load(line) : all(-kInfinity));
    }
  }
}

// The scores of a step are there: takes out what is not seen, keeps the maxima.
inline void take_scores(int step, float* scores, Strip& strip) {
  if (step * kStep < strip.from || step * kStep + kStep - 1 > strip.to) hide(strip, step, scores);
  for (int row = 0; row < strip.count; ++row) {
    const float* line = line_of(scores, row, 2 * step);
    strip.most[row] = larger(larger(strip.most[row], load(line)), load(line + kLine));
  }
}

// All scores are there. Those beyond what `shift` can hold are moved first: so does a row whatever
// its neighbours are.
inline void find_tops(int begin, int end, float* scores, Strip& strip) {
  for (int index = 0; index < strip.count; ++index) {
    Row& row = strip.rows[index];
    float maximum = largest(strip.most[index]);
    // -infinity: a key is broken, or the row sees nothing and nobody asks for its result
    row.top = row.low = maximum > -kInfinity ? std::ceil(maximum) : kNan;
    if (std::fabs(row.top) > 1e6f) {
      for (int c = 2 * begin; c < 2 * end; ++c) {
        float* line = line_of(scores, index, c);
        store(line, load(line) - row.top);
      }
      row.low = 0;
    }
    row.shift = 12583039.0f - row.low;
    strip.most[index] = F32{};
  }
}

inline void put_weights(float* line, F32 left, F32 right, float) {
  store(line, left);
  store(line + kLine, right);
}
// bfloat16: the 32 weights of a step in the line of its first column
inline void put_weights(float* line, F32 left, F32 right, bf16) {
  store(reinterpret_cast<bf16*>(line), left);
  store(reinterpret_cast<bf16*>(line) + kLanes, right);
}

// Scores of one step become weights of type T, for rows first .. first + 16.
template <class T>
inline void weigh(int first, int step, float* scores, Strip& strip) {
  int end = strip.count < first + kRows ? strip.count : first + kRows;
  for (int row = first; row < end; ++row) {
    float* line = line_of(scores, row, 2 * step);
    F32 left = power_of_two(load(line), strip.rows[row]);
    F32 right = power_of_two(load(line + kLine), strip.rows[row]);
    strip.most[row] += left + right;
    put_weights(line, left, right, T{});
  }
}

// ---- products -----------------------------------------------------------------------------------

#if KVEIK_AMX

// bfloat16 in tiles.
struct TileProducts {
  using Element = bf16;

  static void configure_tiles() { configure(product_tiles(kRows, kRows)); }
  static bool reads_in_place(const Arena&, bool by_tile) { return by_tile; }

  // Scores of up to 32 rows and the 32 slots of a step. queries [rows][width].
  // Tiles 0..3: sums, 4 and 5: rows (operand A), 6 and 7: keys (operand B).
  template <bool two>
  static void score(const bf16* queries, int64_t width, const Slots<bf16>& s, int step,
                    float* scores) {
    int64_t bytes = width * sizeof(bf16), key_bytes = s.stride * 4;
    const bf16 *left = s.column[2 * step], *right = s.column[2 * step + 1];
    _tile_zero(0);
    _tile_zero(1);
    if (two) _tile_zero(2);
    if (two) _tile_zero(3);
    for (int64_t i = 0; i < width; i += 32) {
      _tile_loadd(6, left + i * s.stride, key_bytes);
      _tile_loadd(4, queries + i, bytes);
      _tile_dpbf16ps(0, 4, 6);
      if (two) _tile_loadd(5, queries + kRows * width + i, bytes);
      if (two) _tile_dpbf16ps(2, 5, 6);
      _tile_loadd(7, right + i * s.stride, key_bytes);
      _tile_dpbf16ps(1, 4, 7);
      if (two) _tile_dpbf16ps(3, 5, 7);
    }
    float* out = scores + 2 * step * kLine;
    _tile_stored(0, out, 64);
    _tile_stored(1, out + kLine, 64);
    if (two) _tile_stored(2, out + kTileScores, 64);
    if (two) _tile_stored(3, out + kTileScores + kLine, 64);
  }
  static void score(const bf16* queries, int64_t width, int rows, const Slots<bf16>& s, int step,
                    float* scores) {
    if (rows > kRows) return score<true>(queries, width, s, step, scores);
    score<false>(queries, width, s, step, scores);
  }

  // partial [rows][width] = weights x values for one tile of rows, 64 (or the last 32) dimensions
  // at a time; weigh(step) makes the weights of a step right before they are needed.
  // Tiles 0..3: sums, 4: weights (operand A), 5 and 6: values (operand B).
  template <int sums, class Weigh>
  static void combine(const float* weights, int64_t width, const bf16* values, const Slots<bf16>& s,
                      float* partial, Weigh weigh) {
    _tile_zero(0);
    _tile_zero(1);
    if (sums == 4) _tile_zero(2);
    if (sums == 4) _tile_zero(3);
    for (int step = s.first / kStep; step < s.end / kStep; ++step) {
      weigh(step);
      const bf16* own = values + step * kStep * width;
      _tile_loadd(4, weights + 2 * step * kLine, 64);
      _tile_loadd(5, own, width * 4);
      _tile_dpbf16ps(0, 4, 5);
      _tile_loadd(6, own + 32, width * 4);
      _tile_dpbf16ps(1, 4, 6);
      if (sums == 4) _tile_loadd(5, own + 64, width * 4);
      if (sums == 4) _tile_dpbf16ps(2, 4, 5);
      if (sums == 4) _tile_loadd(6, own + 96, width * 4);
      if (sums == 4) _tile_dpbf16ps(3, 4, 6);
    }
    _tile_stored(0, partial, width * 4);
    _tile_stored(1, partial + kLanes, width * 4);
    if (sums == 4) _tile_stored(2, partial + 2 * kLanes, width * 4);
    if (sums == 4) _tile_stored(3, partial + 3 * kLanes, width * 4);
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
  static void score_rows(const float* queries, int64_t width, const Slots<float>& s, int step,
                         float* out) {
    F32 sums[2][count] = {};
    const float *left = s.column[2 * step], *right = s.column[2 * step + 1];
    for (int64_t i = 0; i < width; ++i) {
      F32 keys[2] = {load(left + i * s.stride), load(right + i * s.stride)};
      for (int row = 0; row < count; ++row) {
        sums[0][row] += keys[0] * queries[row * width + i];
        sums[1][row] += keys[1] * queries[row * width + i];
      }
    }
    for (int row = 0; row < count; ++row) {
      store(out + row * kLanes, sums[0][row]);
      store(out + kLine + row * kLanes, sums[1][row]);
    }
  }
  static void score(const float* queries, int64_t width, int rows, const Slots<float>& s, int step,
                    float* scores) {
    int row = 0;
    for (; row + 4 <= rows; row += 4) {
      score_rows<4>(queries + row * width, width, s, step, line_of(scores, row, 2 * step));
    }
    for (; row < rows; ++row) {
      score_rows<1>(queries + row * width, width, s, step, line_of(scores, row, 2 * step));
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

// Softmax so far of one query row.
struct State {
  float top = -kInfinity;
  float sum = 0;
};

// Memory of one worker for one item of `rows` query rows.
template <class T>
struct Room {
  T* queries;      // [rows + 32][width]
  float* sums;     // [rows][width]: weighted values
  State* state;    // [rows]
  float* scores;   // [2 tiles][16 columns][16 rows][16]
  float* partial;  // [16][width]
  float* line;     // [width]
  Strip* strip;
  Slots<T>* slots;

  static constexpr size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

  Room(Worker& w, int64_t rows, int64_t width) {
    size_t sizes[] = {(rows + kStrip) * width * sizeof(T),
                      rows * width * sizeof(float),
                      rows * sizeof(State),
                      2 * kTileScores * sizeof(float),
                      kRows * width * sizeof(float),
                      width * sizeof(float),
                      sizeof(Strip),
                      sizeof(Slots<T>),
                      kSplit * width * sizeof(T),
                      kSplit * width * sizeof(T)};
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
    next(state);
    next(scores);
    next(partial);
    next(line);
    next(strip);
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
  // Offset in q and y of query row `query` (rows x heads of this KV head).
  int64_t offset(int64_t query) const {
    int64_t row = plan.item_rows[item.first_row + query / share()];
    return (row * plan.spec.heads + head * share() + query % share()) * plan.spec.head_dim;
  }

  void start() {
    int64_t rows = item.rows * share();
    for (int64_t row = 0; row < rows; ++row) room.state[row] = State{};
    std::memset(room.sums, 0, rows * arena.width * sizeof(float));
  }

  void turn(const AttentionPlan::Visit& visit) {
    float factor = plan.spec.scale * 1.44269504f;  // scores in base 2
    for (int64_t query = visit.begin * share(); query < visit.end * share(); ++query) {
      const auto& seen = plan.seen[visit.first_seen + query / share() - visit.begin];
      if (seen.last < seen.first) continue;
      T* out = room.queries + query * arena.width;
      turn_row(plan, q + offset(query), factor, seen.angle, arena.width, room.line);
      for (int64_t i = 0; i < arena.width; i += kLanes) store(out + i, load(room.line + i));
    }
  }

  void meet(const AttentionPlan::Visit& visit) {
    if (visit.turn) turn(visit);
    Slots<T>& slots = *room.slots;
    bool in_place = Products::reads_in_place(arena, plan.pieces[visit.piece].by_tile);
    find_keys(plan, visit, arena, layer, head, in_place, slots);
    find_values(plan, visit, arena, layer, head, slots);
    int64_t end = visit.end * share();
    for (int64_t query = visit.begin * share(); query < end; query += kStrip) {
      int64_t left = end - query;
      meet(visit, query, static_cast<int>(left < kStrip ? left : kStrip), slots);
    }
  }

  // Up to 32 query rows of the visit, from `query` on.
  void meet(const AttentionPlan::Visit& visit, int64_t query, int rows, Slots<T>& slots) {
    Strip& strip = *room.strip;
    if (!begin(visit, query, rows, slots)) return;
    int first_step = slots.first / kStep, end_step = slots.end / kStep;
    const T* queries = room.queries + query * arena.width;
    for (int step = first_step; step < end_step; ++step) {
      Products::score(queries, arena.width, rows, slots, step, room.scores);
      take_scores(step, room.scores, strip);
    }
    find_tops(first_step, end_step, room.scores, strip);
    for (int first = 0; first < rows; first += kRows) {
      Products::combine(room.scores + first / kRows * kTileScores, arena.width,
                        rows - first < kRows ? rows - first : kRows, slots, room.partial,
                        [&](int step) { weigh<T>(first, step, room.scores, strip); });
      for (int row = first; row < rows && row < first + kRows; ++row) {
        if (strip.rows[row].count == 0) continue;
        float total = sees_broken(strip.rows[row], slots) ? kNan : sum(strip.most[row]);
        merge(strip.rows[row].top, total, room.partial + (row - first) * arena.width, query + row);
      }
    }
  }

  // What the rows see; false where that is nothing.
  bool begin(const AttentionPlan::Visit& visit, int64_t query, int rows, Slots<T>& slots) {
    Strip& strip = *room.strip;
    strip.count = rows;
    strip.from = 0;
    strip.to = kSplit - 1;
    int low = kSplit, high = -1;
    const AttentionPlan::Seen* seen = &plan.seen[visit.first_seen] + query / share() - visit.begin;
    int64_t head_in_row = query % share();
    for (int row = 0; row < rows; ++row) {
      int first = seen->first, last = seen->last, count = last - first + 1;
      strip.rows[row] = {first, count, 0, 0, 0};
      strip.most[row] = all(-kInfinity);
      strip.from = first > strip.from ? first : strip.from;
      strip.to = last < strip.to ? last : strip.to;
      if (count > 0) low = first < low ? first : low;
      if (count > 0) high = last > high ? last : high;
      if (++head_in_row == share()) {
        head_in_row = 0;
        ++seen;
      }
    }
    slots.first = low / kStep * kStep;
    slots.end = (high / kStep + 1) * kStep;
    return high >= 0;
  }

  static bool sees_broken(const Row& row, const Slots<T>& slots) {
    for (int i = 0; i < slots.broken; ++i) {
      int slot = slots.broken_slot[i];
      if (row.first <= slot && slot < row.first + row.count) return true;
    }
    return false;
  }

  // Milakov and Gimelshein 2018: two partial results under their common maximum.
  void merge(float top, float total, const float* partial, int64_t query) {
    State& state = room.state[query];
    float common = top > state.top ? top : state.top;
    float old = power_between(state.top, common), now = power_between(top, common);
    state.top = common;
    state.sum = state.sum * old + total * now;
    float* sums = room.sums + query * arena.width;
    for (int64_t i = 0; i < arena.width; i += kLanes) {
      store(sums + i, load(sums + i) * old + (load(partial + i) + 0.0f) * now);  // never -0
    }
  }

  void finish(float* y) {
    for (int64_t query = 0; query < item.rows * share(); ++query) {
      float sum = room.state[query].sum, *out = y + offset(query);
      const float* sums = room.sums + query * arena.width;
      float factor = sum == 0 ? 0.0f : 1.0f / sum;
      for (int64_t i = 0; i < plan.spec.head_dim; i += kLanes) {
        store(out + i, sum == sum ? load(sums + i) * factor : all(kNan), plan.spec.head_dim - i);
      }
    }
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
