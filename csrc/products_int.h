// Integer products of some rows of the operand (up to 32 lines: a row has one or two planes) x one
// group of inputs of a panel of bytes: tiles, VNNI, or pairs of 16 bits. Sums are exact, so every
// level has the same.
#pragma once

#include "operand_int.h"

namespace kveik {
namespace KVEIK_LEVEL {

constexpr int64_t kLines = 32;       // of rows that are multiplied together
constexpr int64_t kScalesAhead = 8;  // groups

template <int P>
constexpr int64_t kTogether = kLines / P;

// Sums of up to 32 lines x one panel over the groups so far, without the scales of rows.
template <int P>
struct RowSums {
  alignas(64) float totals[kTogether<P>][kPanel];
};

// Group `number` of a panel's inputs.
struct Group {
  const Linear& weight;
  int64_t panel, number;

  int64_t begin() const { return number * weight.group; }
  int64_t end() const { return begin() + weight.group; }

  // Row `row`'s totals of 16 columns += the scale of the group * what its integers are worth.
  template <int P>
  void add(RowSums<P>& sums, int64_t row, int64_t column, F32 scale, const I32* ints) const {
    float* total = sums.totals[row] + column;
    F32 before = number == 0 ? F32{} : load(total);
    store(total, fused(whole_value<P>(ints), scale, before));
  }
  F32 scale(int64_t column) const { return group_scale(weight, panel * kPanel + column, number); }

  // The scales of a later group: read too seldom for the processor to fetch them by itself.
  void fetch_scales() const {
    int64_t groups = weight.in_padded / weight.group, later = number + kScalesAhead;
    const float* at = weight.scales + (panel * 2 * groups + later) * kLanes;
    if (later >= groups) at += groups * kLanes;  // of the next panel
    __builtin_prefetch(at);
    __builtin_prefetch(at + groups * kLanes);
  }
};

#if KVEIK_AMX

constexpr int kPassLines = kLines;   // that one pass over the weights multiplies
constexpr int64_t kFetches = 1;      // of what follows, in a step of 64 inputs
constexpr int64_t kFewLines = 4;     // that fetch what follows at once: more read no faster for it
constexpr int64_t kFewAhead = 4096;  // bytes of int8 that they fetch ahead

struct alignas(64) IntBlock {
  int32_t sums[kLines][kPanel];  // by line
};

struct TileRows {  // of A: steps of `step` bytes
  const int8_t* at;
  int64_t step;
};

// many: the rows stream past the first-level cache, where the panel's steps stay for the next rows.
template <bool two, bool many>
inline void byte_products(TileRows upper, TileRows lower, const int8_t* tiles, int64_t steps,
                          IntBlock& ints, Ahead& ahead) {
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (two) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t step = 0; step < steps; ++step) {
    _tile_loadd(6, tiles, 64);
    give_way();
    _tile_loadd(7, tiles + kTileInt, 64);
    give_way();
    if constexpr (many) {
      _tile_stream_loadd(4, upper.at, 64);
    } else {
      _tile_loadd(4, upper.at, 64);
    }
    give_way();
    _tile_dpbssd(0, 4, 6);
    give_way();
    _tile_dpbssd(1, 4, 7);
    give_way();
    if constexpr (two) {
      if constexpr (many) {
        _tile_stream_loadd(5, lower.at, 64);
      } else {
        _tile_loadd(5, lower.at, 64);
      }
      give_way();
      _tile_dpbssd(2, 5, 6);
      give_way();
      _tile_dpbssd(3, 5, 7);
      give_way();
      lower.at += lower.step;
    }
    ahead.fetch();
    upper.at += upper.step;
    tiles += 2 * kTileInt;
  }
  constexpr int64_t stride = sizeof ints.sums[0];
  _tile_stored(0, ints.sums[0], stride);
  _tile_stored(1, ints.sums[0] + 16, stride);
  if constexpr (two) {
    _tile_stored(2, ints.sums[16], stride);
    _tile_stored(3, ints.sums[16] + 16, stride);
  }
}

template <int P>
inline void add_block(const IntBlock& ints, const Group& group, int64_t rows, RowSums<P>& sums) {
  for (int64_t column = 0; column < kPanel; column += kLanes) {
    F32 scale = group.scale(column);
    for (int64_t row = 0; row < rows; ++row) {
      I32 planes[P];
      for (int i = 0; i < P; ++i) {
        std::memcpy(planes + i, ints.sums[P * row + i] + column, sizeof planes[i]);
      }
      group.add(sums, row, column, scale, planes);
    }
  }
}

// The tiles must be configured for these rows. tiles: those of the group.
template <int P>
inline void int_products(const IntOperand<P>& operand, int64_t first, int64_t rows,
                         const int8_t* tiles, const Group& group, RowSums<P>& sums, Ahead& ahead) {
  constexpr int64_t kBlock = kTileLines / P;
  int64_t step = group.begin() / kStepInt, steps = group.weight.group / kStepInt;
  int64_t above = rows < kBlock ? rows : kBlock;
  TileRows upper{operand.at(first, step), above * P * kStepInt};
  IntBlock ints;
  if (rows > kBlock) {
    TileRows lower{operand.at(first + kBlock, step), (rows - above) * P * kStepInt};
    if (ahead.lines > 0) {
      byte_products<true, true>(upper, lower, tiles, steps, ints, ahead);
    } else {
      byte_products<true, false>(upper, lower, tiles, steps, ints, ahead);
    }
  } else {
    byte_products<false, false>(upper, upper, tiles, steps, ints, ahead);
  }
  add_block(ints, group, rows, sums);
}

inline void configure_int(int64_t lines) {
  int64_t upper = lines < kTileLines ? lines : kTileLines;
  configure(product_tiles(static_cast<int>(upper), static_cast<int>(lines - upper)));
}

#else

constexpr int64_t kFetches = 16;  // of a step: beside every load
constexpr int64_t kFewAhead = 4096;
constexpr int64_t kFewLines = INT64_MAX;  // that fetch so: all that one pass takes

#if KVEIK_VNNI

constexpr int kPassLines = 8, kIntTiles = 2;
constexpr bool kTileByTile = false;

// Four inputs of 16 columns. The instruction multiplies unsigned bytes with signed ones: the weight
// is shifted by 128, which the sums of the operand take back.
struct Fours {
  __m512i shifted;
  explicit Fours(const int8_t* tile_row)
      : shifted(_mm512_xor_si512(_mm512_loadu_si512(tile_row), _mm512_set1_epi8(-128))) {}
};

inline I32 add_products(I32 sum, const Fours& weights, const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, sizeof four);
  return (I32)_mm512_dpbusd_epi32((__m512i)sum, weights.shifted, _mm512_set1_epi32(four));
}

#else

constexpr int kPassLines = 4, kIntTiles = 1;
constexpr bool kTileByTile = true;  // memory is read in the order in which it lies

typedef Lanes<int16_t> I16;

struct Fours {  // as 16 bits: inputs 0 and 2, 1 and 3
  I16 even, odd;
  explicit Fours(const int8_t* tile_row) {
    I16 both = load_lanes<int16_t>(tile_row);
    even = (both << 8) >> 8;
    odd = both >> 8;
  }
};

// Sums of two neighbouring products.
inline I32 neighbour_products(const I16& a, const I16& b) {
#if defined(__AVX2__)
  KVEIK_PARTS(I32, _mm256_madd_epi16((__m256i)a.part[i], (__m256i)b.part[i]))
#elif defined(__SSE2__)
  KVEIK_PARTS(I32, _mm_madd_epi16((__m128i)a.part[i], (__m128i)b.part[i]))
#else
  // little-endian: the first of a pair is the lower half
  I32 a_wide = same_bits<int32_t>(a), b_wide = same_bits<int32_t>(b);
  return ((a_wide << 16) >> 16) * ((b_wide << 16) >> 16) + (a_wide >> 16) * (b_wide >> 16);
#endif
}

inline I32 add_products(const I32& sum, const Fours& weights, const int16_t* x) {
  int32_t first, second;  // x 0 and 2, 1 and 3
  std::memcpy(&first, x, sizeof first);
  std::memcpy(&second, x + 2, sizeof second);
  I16 even = same_bits<int16_t>(I32{} + first), odd = same_bits<int16_t>(I32{} + second);
  return sum + neighbour_products(weights.even, even) + neighbour_products(weights.odd, odd);
}

#endif

// `count` rows from row `row` on x `tile_count` tiles from column `column` of the panel on.
template <int count, int tile_count, int P>
inline void line_products(const IntOperand<P>& operand, int64_t first, int64_t row, int64_t column,
                          const int8_t* tiles, const Group& group, RowSums<P>& totals,
                          Ahead& ahead) {
  constexpr int lines = count * P;
  int64_t begin = group.begin(), end = group.end();
  const Value* x[lines];
  I32 sums[tile_count][lines];
#pragma GCC unroll 8
  for (int i = 0; i < lines; ++i) {
    x[i] = operand.line(first + row, i, begin / kStepInt);
    int32_t start = 0;
    if constexpr (kShifted) start = -128 * operand.sum_of(first + row, i, begin, end);
#pragma GCC unroll 2
    for (int tile = 0; tile < tile_count; ++tile) sums[tile][i] = I32{} + start;
  }
  tiles += column / kLanes * kTileInt;
  Ahead own = ahead;  // a copy, so that sums stay in registers
  for (int64_t k = 0; k < end - begin; k += kStepInt, tiles += 2 * kTileInt) {
    auto multiply = [&](int tile, int64_t four) {
      Fours weights(tiles + tile * kTileInt + four * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < lines; ++i) {
        sums[tile][i] = add_products(sums[tile][i], weights, x[i] + k + four);
      }
    };
    if constexpr (kTileByTile) {
#pragma GCC unroll 2
      for (int tile = 0; tile < tile_count; ++tile) {
#pragma GCC unroll 1
        for (int64_t four = 0; four < kStepInt; four += 4) {
          if (four % (tile_count * kStepInt / kFetches) == 0) own.fetch();
          multiply(tile, four);
        }
      }
    } else {
      for (int64_t four = 0; four < kStepInt; four += 4) {
        if (four % (kStepInt / kFetches) == 0) own.fetch();
#pragma GCC unroll 2
        for (int tile = 0; tile < tile_count; ++tile) multiply(tile, four);
      }
    }
  }
  ahead = own;
#pragma GCC unroll 2
  for (int tile = 0; tile < tile_count; ++tile) {
    F32 scale = group.scale(column + tile * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
      group.add(totals, row + i, column + tile * kLanes, scale, sums[tile] + i * P);
    }
  }
}

// Rows row .. rows, `count` at a time, what is left with half as many.
template <int count, int P>
inline void rows_by(const IntOperand<P>& operand, int64_t first, int64_t row, int64_t rows,
                    const int8_t* tiles, const Group& group, RowSums<P>& sums, Ahead& ahead) {
  constexpr int together = count * P == kPassLines ? kIntTiles : 2;
  for (; row + count <= rows; row += count) {
    for (int64_t column = 0; column < kPanel; column += together * kLanes) {
      line_products<count, together>(operand, first, row, column, tiles, group, sums, ahead);
    }
  }
  if constexpr (count > 1) {
    rows_by<count / 2>(operand, first, row, rows, tiles, group, sums, ahead);
  }
}

template <int P>
inline void int_products(const IntOperand<P>& operand, int64_t first, int64_t rows,
                         const int8_t* tiles, const Group& group, RowSums<P>& sums, Ahead& ahead) {
  rows_by<kPassLines / P>(operand, first, 0, rows, tiles, group, sums, ahead);
}

inline void configure_int(int64_t) {}

#endif

}  // namespace KVEIK_LEVEL
}  // namespace kveik
