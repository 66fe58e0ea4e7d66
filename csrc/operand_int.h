// The operand of products with int8 and int4 weights, and the arithmetic that all of them share.
//
// A row of x is one or two planes of signed bytes, with one scale for the row:
//
//   words   x in 16 bits, two planes: scale = max|x| / 32512, value = 256 hi + lo
//   bytes   x rotated (rotation.h), one plane: scale = max|x| / 127 (/ block of the rotation)
//
// A row that holds infinity or NaN has the scale NaN.
#pragma once

#include "linear.h"
#include "rotate.h"
#include "rows.h"
#include "simd.h"

namespace kveik {
namespace KVEIK_LEVEL {

constexpr int64_t kStepInt = 64;        // inputs of one int8 tile
constexpr int64_t kTileInt = 1024;      // its bytes
constexpr int64_t kStepBytes = 2048;    // of the two tiles of a step
constexpr int64_t kPackedInputs = 128;  // of one tile of nibbles, as large as one of bytes
constexpr int64_t kTileLines = 16;      // rows of bytes of one tile of A
constexpr float kLargest8 = 127;
constexpr float kLargest16 = 32512;     // 127 * 256: the largest value whose hi is a signed byte
constexpr float kSmallestMax = 1e-34f;  // a row below it counts as zero: 32512 / max overflows

// One vector for sixteen columns and one group of inputs.
inline F32 group_scale(const Linear& weight, int64_t column, int64_t group) {
  int64_t groups = weight.in_padded / weight.group;
  return load(weight.scales + column * groups + group * kLanes);
}

// What the sums of the planes of a row are worth.
template <int P>
inline F32 whole_value(const I32* sums) {
  F32 first = to_float(sums[0]);
  if constexpr (P == 1) return first;
  return fused(first, all(256), to_float(sums[P - 1]));
}

// ---- the operand ------------------------------------------------------------------------------
//
//   float scales[rows padded to 16], then the values, P planes of a row:
//   level amx     blocks of 16 / P rows (the last may have fewer), each [in_padded /
//   64][rows][P][64]
//                 int8: what one tile of A holds lies together, hi before lo
//   with VNNI     [rows][P][in_padded] int8
//   elsewhere     [rows][P][in_padded] int16, of every four inputs in the order 0, 2, 1, 3
//
// where an instruction wants unsigned weights: int32 sums[rows][P][in_padded / 64] of each plane
// over every 64 inputs, which take back what the weights are shifted by; and where nibbles are
// multiplied in pairs: the values as int8, too, [rows][P][in_padded].

#if KVEIK_VNNI
using Value = int8_t;
constexpr bool kShifted = true, kBytesToo = false;
#elif KVEIK_NIBBLE_PAIRS
using Value = int16_t;
constexpr bool kShifted = false, kBytesToo = true;
#else
using Value = int16_t;
constexpr bool kShifted = false, kBytesToo = false;
#endif
constexpr bool kSums = kShifted || kBytesToo;

inline int64_t planes_of(RowKind kind) { return kind == RowKind::words ? 2 : 1; }

inline size_t scales_bytes(int64_t rows) { return padded(rows, kLanes) * sizeof(float); }

inline size_t operand_bytes_int(RowKind kind, int64_t rows, int64_t in) {
  int64_t width = padded(in, 128), sums = kSums ? width / kStepInt * sizeof(int32_t) : 0;
  size_t values = width * (sizeof(Value) + (kBytesToo ? 1 : 0));
  return scales_bytes(rows) + rows * planes_of(kind) * (values + sums);
}

template <int P>
struct IntOperand {
  static constexpr int planes = P;

  float* scales;
  Value* values;
  int32_t* sums;
  int8_t* bytes;
  int64_t rows, width;

  IntOperand(const void* operand, int64_t row_count, int64_t in_padded)
      : scales(static_cast<float*>(const_cast<void*>(operand))),
        values(reinterpret_cast<Value*>(scales + padded(row_count, kLanes))),
        sums(reinterpret_cast<int32_t*>(values + row_count * P * in_padded)),
        bytes(reinterpret_cast<int8_t*>(sums + row_count * P * (in_padded / kStepInt))),
        rows(row_count),
        width(in_padded) {}

  // The first plane of 64 inputs, step `step` of a row; the second follows at plane_distance.
#if KVEIK_AMX
  Value* at(int64_t row, int64_t step) const {
    constexpr int64_t kBlock = kTileLines / P;
    int64_t first = row / kBlock * kBlock;
    int64_t height = rows - first < kBlock ? rows - first : kBlock;
    return values + first * P * width + (step * height + row - first) * P * kStepInt;
  }
  int64_t plane_distance() const { return kStepInt; }
#else
  Value* at(int64_t row, int64_t step) const { return values + row * P * width + step * kStepInt; }
  int64_t plane_distance() const { return width; }
#endif

  // Line i is plane i % P of row i / P, counted from `row`.
  const Value* line(int64_t row, int64_t i, int64_t step) const {
    return at(row + i / P, step) + i % P * plane_distance();
  }

  int8_t* byte_line(int64_t row, int64_t i) const { return bytes + (row * P + i) * width; }

  // From a step of a row to the one after the next.
  const Value* next_steps(const Value* step, int64_t row) const {
    return step + (at(row, 2) - at(row, 0));
  }

  // of line i over inputs begin .. end (multiples of 64)
  int32_t sum_of(int64_t row, int64_t i, int64_t begin, int64_t end) const {
    const int32_t* own = sums + (P * row + i) * (width / kStepInt);
    int32_t total = 0;
    for (int64_t k = begin / kStepInt; k < end / kStepInt; ++k) total += own[k];
    return total;
  }
};

// max |x| as the bits of a float: ordered like the numbers, infinity and NaN above all others
inline uint32_t largest_magnitude(const float* x, int64_t in) {
  I32 most = {};  // below 2^31, where signed and unsigned numbers have one order
  for (int64_t i = 0; i < in; i += kLanes) {
    I32 bits = as_int(as_bits(load(x + i, in - i)) & 0x7fffffffu);
    most = select(bits > most, bits, most);
  }
  return static_cast<uint32_t>(largest(most));
}

#if !KVEIK_VNNI
// Of every four: 0, 2, 1, 3.
template <int lanes, class V>
inline V third_before_second(V v) {
  if constexpr (lanes == 8) {
    return __builtin_shufflevector(v, v, 0, 2, 1, 3, 4, 6, 5, 7);
  } else {
    return __builtin_shufflevector(v, v, 0, 2, 1, 3);
  }
}
#endif

inline void put_values(Value* to, const I32& v) {
#if KVEIK_VNNI
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)v));
#else
  constexpr int lanes = kPartBytes / 4;
  typedef Value Values __attribute__((vector_size(lanes * sizeof(Value))));
#pragma GCC unroll 4
  for (int i = 0; i < kParts; ++i) {
    auto narrow = third_before_second<lanes>(__builtin_convertvector(v.part[i], Values));
    std::memcpy(to + i * lanes, &narrow, sizeof narrow);
  }
#endif
}

// Sixteen values of a signed byte each.
inline void put_bytes(int8_t* to, const I32& v) {
#if KVEIK_NIBBLE_PAIRS
  __m256i words = _mm256_packs_epi32((__m256i)v.part[0], (__m256i)v.part[1]);  // 0-3 8-11 4-7 12-15
  words = _mm256_permute4x64_epi64(words, 0xd8);
  __m128i low = _mm256_castsi256_si128(words), high = _mm256_extracti128_si256(words, 1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(low, high));
#else
  (void)to, (void)v;
#endif
}

// A row in whole numbers of at most `most_value`, its scale multiplied by `share`.
template <int P>
inline void convert_row(const float* x, int64_t in, float most_value, float share,
                        const IntOperand<P>& operand, int64_t row) {
  uint32_t bits = largest_magnitude(x, in);
  float most;
  std::memcpy(&most, &bits, sizeof most);
  bool finite = bits < 0x7f800000u;
  operand.scales[row] = finite ? most / most_value * share : NAN;
  bool zero = !finite || most < kSmallestMax;
  float factor = zero ? 0.0f : most_value / most;
  const F32 magic = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  int64_t steps = operand.width / kStepInt;
  int32_t* sums = operand.sums + P * row * steps;
  for (int64_t step = 0; step < steps; ++step) {
    I32 plane_sums[P] = {};
    Value* to = operand.at(row, step);
    for (int64_t part = 0; part < kStepInt; part += kLanes) {
      int64_t i = step * kStepInt + part;
      F32 v = zero || i >= in ? F32{} : load(x + i, in - i);
      F32 shifted = fused(v, all(factor), magic);
      I32 planes[P] = {as_int(as_bits(shifted) - as_bits(magic))};
      if constexpr (P == 2) {
        I32 whole = planes[0];
        planes[0] = (whole + 128) >> 8;
        planes[1] = whole - (planes[0] << 8);
      }
#pragma GCC unroll 2
      for (int plane = 0; plane < P; ++plane) {
        put_values(to + plane * operand.plane_distance() + part, planes[plane]);
        if constexpr (kBytesToo) put_bytes(operand.byte_line(row, plane) + i, planes[plane]);
        plane_sums[plane] += planes[plane];
      }
    }
    if constexpr (kSums) {
      for (int plane = 0; plane < P; ++plane) sums[plane * steps + step] = sum(plane_sums[plane]);
    }
  }
}

inline void convert_int(RowKind kind, const float* x, int64_t x_stride, int64_t rows, int64_t in,
                        void* memory, Worker& w) {
  int64_t width = padded(in, 128);
  Share own = share(w, rows);
  if (kind == RowKind::words) {
    IntOperand<2> operand(memory, rows, width);
    for (int64_t row = own.begin; row < own.end; ++row) {
      convert_row(x + row * x_stride, in, kLargest16, 1, operand, row);
    }
    return;
  }
  IntOperand<1> operand(memory, rows, width);
  auto* rotated = static_cast<float*>(w.scratch(width * sizeof(float)));
  float part = 1 / static_cast<float>(rotation_block(width));
  for (int64_t row = own.begin; row < own.end; ++row) {
    rotate(x + row * x_stride, in, rotated, width);
    convert_row(rotated, width, kLargest8, part, operand, row);
  }
}

}  // namespace KVEIK_LEVEL
}  // namespace kveik
