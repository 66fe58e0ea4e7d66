// The operand of products with int8 and int4 weights, and the arithmetic that all of them share.
//
// x in 16 bits: per row scale = max|x| / 32512 and value = 256 hi + lo, where hi and lo are signed
// bytes, so that one 16-bit row is multiplied as two rows of bytes. A row that holds infinity or
// NaN has the scale NaN.
#pragma once

#include "linear.h"
#include "rows.h"
#include "simd.h"

namespace kveik {
namespace KVEIK_LEVEL {

constexpr int64_t kStepInt = 64;        // inputs of one int8 tile
constexpr int64_t kTileInt = 1024;      // its bytes
constexpr int64_t kBlockRows = 8;       // rows of one tile of A: hi and lo of each
constexpr float kLargest16 = 32512;     // 127 * 256: the largest value whose hi is a signed byte
constexpr float kSmallestMax = 1e-34f;  // a row below it counts as zero: 32512 / max overflows

typedef int8_t I8 __attribute__((vector_size(16)));

// a * b + c, rounded once; written out so that no level's compiler decides.
inline F32 fused(F32 a, F32 b, F32 c) {
#if defined(__AVX512F__)
  return (F32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  F32 result;
  for (int lane = 0; lane < kLanes; ++lane) result[lane] = std::fma(a[lane], b[lane], c[lane]);
  return result;
#endif
}

// One vector for sixteen columns and one group of inputs.
inline F32 group_scale(const Linear& weight, int64_t column, int64_t group) {
  int64_t groups = weight.in_padded / weight.group;
  return load(weight.scales + column * groups + group * kLanes);
}

inline F32 hi_and_lo(I32 hi, I32 lo) {
  return fused(__builtin_convertvector(hi, F32), all(256), __builtin_convertvector(lo, F32));
}

// ---- the operand ------------------------------------------------------------------------------
//
//   float scales[rows padded to 16], then the values of hi and lo:
//   level amx     blocks of 8 rows (the last may have fewer), each [in_padded / 64][rows][2][64]
//                 int8: what one tile of A holds lies together, hi before lo
//   with VNNI     [rows][2][in_padded] int8
//   elsewhere     [rows][2][in_padded] int16, of every four inputs in the order 0, 2, 1, 3
//
// and with VNNI, whose instruction wants unsigned weights: int32 sums[rows][2][in_padded / 64] of
// hi and lo over every 64 inputs, which take back what the weights are shifted by.

#if KVEIK_VNNI
using Value = int8_t;
constexpr bool kSums = true;
#else
using Value = int16_t;
constexpr bool kSums = false;
#endif

inline size_t scales_bytes(int64_t rows) { return padded(rows, kLanes) * sizeof(float); }

inline size_t operand_bytes_int(int64_t rows, int64_t in) {
  int64_t width = padded(in, 128), sums = kSums ? width / kStepInt * sizeof(int32_t) : 0;
  return scales_bytes(rows) + rows * 2 * (width * sizeof(Value) + sums);
}

struct IntOperand {
  float* scales;
  Value* values;
  int32_t* sums;
  int64_t rows, width;

  IntOperand(const void* operand, int64_t row_count, int64_t in_padded)
      : scales(static_cast<float*>(const_cast<void*>(operand))),
        values(reinterpret_cast<Value*>(scales + padded(row_count, kLanes))),
        sums(reinterpret_cast<int32_t*>(values + row_count * 2 * in_padded)),
        rows(row_count),
        width(in_padded) {}

  // The 64 hi of step `step` of a row; its lo follow at lo_distance.
#if KVEIK_AMX
  Value* at(int64_t row, int64_t step) const {
    int64_t first = row / kBlockRows * kBlockRows;
    int64_t height = rows - first < kBlockRows ? rows - first : kBlockRows;
    return values + first * 2 * width + (step * height + row - first) * 2 * kStepInt;
  }
  int64_t lo_distance() const { return kStepInt; }
#else
  Value* at(int64_t row, int64_t step) const { return values + row * 2 * width + step * kStepInt; }
  int64_t lo_distance() const { return width; }
#endif
};

// of hi (which 0) or lo (1) of a row, over inputs begin .. end (multiples of 64)
inline int32_t sum_of(const IntOperand& operand, int64_t row, int64_t which, int64_t begin,
                      int64_t end) {
  const int32_t* sums = operand.sums + (2 * row + which) * (operand.width / kStepInt);
  int32_t total = 0;
  for (int64_t i = begin / kStepInt; i < end / kStepInt; ++i) total += sums[i];
  return total;
}

inline int32_t sum(I32 v) {
  int32_t total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += v[lane];
  return total;
}

// max |x| as the bits of a float: ordered like the numbers, infinity and NaN above all others
inline uint32_t largest_magnitude(const float* x, int64_t in) {
  U32 most = {};
  for (int64_t i = 0; i < in; i += kLanes) {
    U32 bits = as_bits(load(x + i, in - i)) & 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  uint32_t result = 0;
  for (int lane = 0; lane < kLanes; ++lane) result = most[lane] > result ? most[lane] : result;
  return result;
}

inline void put_values(Value* to, I32 v) {
#if KVEIK_VNNI
  I8 bytes = __builtin_convertvector(v, I8);
  std::memcpy(to, &bytes, sizeof bytes);
#else
  for (int lane = 0; lane < kLanes; ++lane) {
    constexpr int kOrder[4] = {0, 2, 1, 3};
    to[lane] = static_cast<Value>(v[lane / 4 * 4 + kOrder[lane % 4]]);
  }
#endif
}

inline void convert_row(const float* x, int64_t in, const IntOperand& operand, int64_t row) {
  uint32_t bits = largest_magnitude(x, in);
  float most;
  std::memcpy(&most, &bits, sizeof most);
  bool finite = bits < 0x7f800000u;
  operand.scales[row] = finite ? most / kLargest16 : NAN;
  bool zero = !finite || most < kSmallestMax;
  float factor = zero ? 0.0f : kLargest16 / most;
  const F32 magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  int64_t steps = operand.width / kStepInt;
  int32_t* sums = operand.sums + 2 * row * steps;
  for (int64_t step = 0; step < steps; ++step) {
    I32 upper_sum = {}, lower_sum = {};
    Value* hi = operand.at(row, step);
    Value* lo = hi + operand.lo_distance();
    for (int64_t part = 0; part < kStepInt; part += kLanes) {
      int64_t i = step * kStepInt + part;
      F32 v = zero || i >= in ? F32{} : load(x + i, in - i);
      F32 shifted = fused(v, all(factor), magic);
      I32 whole = (I32)(as_bits(shifted) - as_bits(magic));
      I32 upper = (whole + 128) >> 8;
      I32 lower = whole - (upper << 8);
      put_values(hi + part, upper);
      put_values(lo + part, lower);
      upper_sum += upper;
      lower_sum += lower;
    }
    if constexpr (kSums) {
      sums[step] = sum(upper_sum);
      sums[steps + step] = sum(lower_sum);
    }
  }
}

inline void convert_int(const float* x, int64_t x_stride, int64_t rows, int64_t in, void* memory,
                        Worker& w) {
  IntOperand operand(memory, rows, padded(in, 128));
  Share own = share(w, rows);
  for (int64_t row = own.begin; row < own.end; ++row) {
    convert_row(x + row * x_stride, in, operand, row);
  }
}

}  // namespace KVEIK_LEVEL
}  // namespace kveik
