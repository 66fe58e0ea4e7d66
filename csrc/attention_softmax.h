// From scores to weights: up to 16 query rows, one step of 32 slots at a time.
//
//   hide        slots that a row does not see get the score -infinity
//   find_tops   the maximum of a row, rounded up to an integer: 2^(score - top) is then scaled
//               exactly when partial results meet (power_between)
//   weigh       weights of one step in the place of its scores, and their sum
//
// Scores are in base 2, so that no exponential but 2^x is needed. A row's numbers depend on its own
// scores alone. NaN among them makes the row's sum NaN, a top of -infinity likewise.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "attention_slots.h"
#include "simd.h"

namespace kveik {
namespace KVEIK_LEVEL {

constexpr int kRows = 16;  // of a tile
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

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
inline F32 power_of_two(const F32& score, float top, float shift) {
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
  return select(score < top - 126.0f, F32{}, value);
}

// 2^(a - b) for integers a <= b, or a = -infinity
inline F32 power_between(const F32& a, const F32& b) {
  F32 exponent = a - b;
  F32 bounded = select(exponent >= -126.0f, exponent, all(-126.0f));
  F32 value = as_float(as_bits((to_int(bounded) + 127) << 23));
  value = select(exponent < -126.0f, F32{}, value);
  return select(exponent == exponent, value, exponent);
}

// Scores of a step that a row does not see become -infinity, whatever they were.
inline void hide(const Tile& tile, int step, float* scores) {
  const U32 lanes = lane_numbers();
  for (int row = 0; row < tile.rows; ++row) {
    auto first = static_cast<uint32_t>(tile.first[row]);
    auto seen = static_cast<uint32_t>(tile.seen[row]);
    for (int c = 2 * step; c < 2 * step + 2; ++c) {
      float* line = scores + c * kLine + row * kLanes;
      store(line, select(lanes + (c * kLanes - first) < seen, load(line), all(-kInfinity)));
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

inline void put_weights(float* line, const F32& left, const F32& right, float) {
  store(line, left);
  store(line + kLine, right);
}
// bfloat16: the 32 weights of a step in the line of its first column
inline void put_weights(float* line, const F32& left, const F32& right, bf16) {
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

}  // namespace KVEIK_LEVEL
}  // namespace kveik
