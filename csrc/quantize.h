// From a matrix to int8 or int4 weights in tile order (layouts: kernels.h).
//
// All three fill type, sizes, data, scales, zeros and group of `linear`, whose memory is `packed`,
// and work one block of 16 columns at a time in every thread of the pool. They throw
// std::invalid_argument for more inputs than int32 sums can hold.
#pragma once

#include "kernels.h"
#include "memory.h"
#include "pool.h"

namespace kveik {

constexpr int64_t kMostInputsInt = 131072;  // 127 * 128 * inputs of one group stay below 2^31

struct PackedInts {
  Buffer data, scales, zeros;
};

// source: [out][in] in its stored type. group: inputs of one scale, a multiple of 64; 0: all.
// rotated: rows are turned first (rotation.h), and so will be those of x.
//   int8  scale = max|w| / 127
//   int4  symmetric, values -8 .. 7: of 2 x 13 scales near max|w| / 8, half of them negative so
//   that
//         the largest weight of either sign can be the -8, the one with the least squared error
void quantize(Pool& pool, const void* source, Table::Stored stored, int64_t out, int64_t in,
              WeightType type, int64_t group, bool rotated, Linear& linear, PackedInts& packed);

// What a checkpoint stores quantised (QuantizedArray of kernels/ops.py).
struct QuantizedMatrix {
  int bits;              // 4 or 8
  int64_t out, in;       //
  int64_t group;         // inputs of one scale; it divides `in`
  const int8_t* values;  // [out][in]: -128 .. 127, or 0 .. 15
  const float* scales;   // [out][in / group]
  const uint8_t* zeros;  // [out][in / group] or null: 8 everywhere
};

// Groups that tiles can follow: of a multiple of 64 inputs, as many as fill the padded rows.
bool fits_tiles(const QuantizedMatrix& matrix);

// The same numbers in tile order, exactly. The matrix must fit.
void pack_quantized(Pool& pool, const QuantizedMatrix& matrix, Linear& linear, PackedInts& packed);

// What does not fit (groups of 32), rounded to int8 with a scale for every 64 inputs.
void requantize(Pool& pool, const QuantizedMatrix& matrix, Linear& linear, PackedInts& packed);

}  // namespace kveik
