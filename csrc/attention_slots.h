// The keys and values of a visit: from blocks all over the arena to 256 slots in a row.
//
//   find_keys     keys stay where they are if sixteen slots lie together as the products read them,
//                 else they are copied
//   find_values   values are always copied: what nobody sees must be zero, and so must a slot with
//                 an infinite number or NaN. `broken` names those, and the caller makes the result
//                 NaN for the rows that see one
//
// T is what the products multiply: float or bfloat16. Slots outside low .. high of the
// visit may hold anything in the keys (their scores are hidden) and are zero in the values, up to
// the borders of the steps first .. end; beyond these nothing is set, and nobody reads.
#pragma once

#include <cstring>

#include "attention_plan.h"
#include "attention_planes.h"
#include "simd.h"

namespace kveik {
namespace KVEIK_LEVEL {

constexpr int kStep = 32;                  // slots of one step of weights x values
constexpr int kColumns = kSplit / kLanes;  // of scores; a column is 16 slots

// What will be read soon, as lines of 64 bytes: `width / 2` of them for each column of 16 slots of
// bfloat16, `stride` bytes apart.
struct Coming {
  const char* at[kColumns];
  int64_t stride;
};

// Where the 256 slots of a visit are read. T: float or bfloat16.
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
  bool fetching;  // products of these rows fetch, for the first rows of a visit:
  Coming coming_values, coming_keys;  // of this visit, of the next one
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

// ---- keys ---------------------------------------------------------------------------------------

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
      const char* from = block + (pair * arena.block_size + offset + at - slot) * 4;
      U32 both = load_lanes<uint32_t>(from);
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
    char* keys = arena.keys(layer, head, block);
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

// Where the columns of a visit lie, to be fetched ahead; false where sixteen slots do not lie
// together. There is an address for every column, of a neighbour where nobody sees it.
inline bool find_coming(const AttentionPlan& plan, const AttentionPlan::Visit& visit,
                        const Arena& arena, int64_t layer, int64_t head, bool keys,
                        Coming& coming) {
  if (!plan.pieces[visit.piece].by_tile || arena.type != KvType::bf16) return false;
  coming.stride = keys ? arena.block_size * 4 : 64;
  int64_t slot_bytes = keys ? 4 : arena.width * 2;
  int next = 0, low = visit.low / 16 * 16, high = visit.high / 16 * 16 + 15;
  for_runs(plan, visit.piece, low, high, [&](int64_t block, int64_t offset, int slot, int count) {
    const char* from = keys ? arena.keys(layer, head, block) : arena.values(layer, head, block);
    for (int c = slot / 16; c <= (slot + count - 1) / 16; ++c) {
      coming.at[c] = from + (offset + 16 * c - slot) * slot_bytes;
      for (; next <= c; ++next) coming.at[next] = coming.at[c];
    }
  });
  for (; next < kColumns; ++next) coming.at[next] = coming.at[next - 1];
  return true;
}

// ---- values -------------------------------------------------------------------------------------

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
      U32 both = load_lanes<uint32_t>(in + i * 4);  // slots offset and its partner
      store(out + i, as_float(offset % 2 == 0 ? both << 16 : both & 0xffff0000u));
    }
  }
}

// Without the sign, where signed and unsigned numbers have one order.
inline Lanes<int16_t> magnitudes(const bf16* p) { return load_lanes<int16_t>(p) & 0x7fff; }
inline I32 magnitudes(const float* p) { return load_lanes<int32_t>(p) & 0x7fffffff; }

// Whether some of count values (a multiple of 32) is infinite or not a number.
template <class T>
inline bool any_broken(const T* values, int64_t count) {
  constexpr int lanes = 64 / sizeof(T);
  auto most = magnitudes(values);
  for (int64_t i = lanes; i < count; i += lanes) {
    auto next = magnitudes(values + i);
    most = select(next > most, next, most);
  }
  bool broken = false;
  for (int lane = 0; lane < lanes; ++lane) {
    broken |= most[lane] >= (sizeof(T) == 2 ? 0x7f80 : 0x7f800000);
  }
  return broken;
}

template <class T>
inline void take_out_broken(int64_t width, int first, int end, Slots<T>& s) {
  constexpr int together = by_pairs(static_cast<T*>(nullptr)) ? 2 : 1;
  for (int slot = first; slot < end; ++slot) {
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
  int first = visit.low / kStep * kStep, last = (visit.high / kStep + 1) * kStep;
  int low = (visit.low + 1) / 2 * 2, high = (visit.high + 1) / 2 * 2;  // whole pairs
  std::memset(s.values + first * width, 0, (low - first) * width * sizeof(T));
  std::memset(s.values + high * width, 0, (last - high) * width * sizeof(T));
  auto copy = [&](int64_t block, int64_t offset, int slot, int count) {
    copy_values(arena, arena.values(layer, head, block), offset, slot, count, s.values);
  };
  for_runs(plan, visit.piece, visit.low, visit.high, copy);
  s.broken = 0;
  if (any_broken(s.values + first * width, (last - first) * width)) {
    take_out_broken(width, first, last, s);
  }
}

}  // namespace KVEIK_LEVEL
}  // namespace kveik
