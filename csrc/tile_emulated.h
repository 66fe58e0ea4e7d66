// Tile registers in plain loops, for machines and sanitizers that have none (KVEIK_EMULATE_TILES).
// Every load and store touches the bytes that the instruction would, and every shape is checked.
// Sums of bfloat16 may differ from the instruction's where numbers are subnormal: it takes zero.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace kveik {
namespace emulated {

struct Tile {
  int rows = 0, bytes = 0;  // as configured
  alignas(64) uint8_t data[16][64] = {};
};

inline thread_local Tile tiles[8];

inline Tile& tile(int number) {
  Tile& found = tiles[number];
  if (found.rows == 0) {
    std::fprintf(stderr, "kveik: tile %d is used before it is configured\n", number);
    std::abort();
  }
  return found;
}

inline void configure(const void* config) {
  const auto* bytes = static_cast<const uint8_t*>(config);
  for (int number = 0; number < 8; ++number) {
    uint16_t width;
    std::memcpy(&width, bytes + 16 + 2 * number, sizeof width);
    tiles[number] = Tile{};
    tiles[number].bytes = width;
    tiles[number].rows = bytes[48 + number];
  }
}

inline void zero(int number) {
  Tile& to = tile(number);
  std::memset(to.data, 0, sizeof to.data);
}

inline void load(int number, const void* from, int64_t stride) {
  zero(number);
  Tile& to = tile(number);
  for (int row = 0; row < to.rows; ++row) {
    std::memcpy(to.data[row], static_cast<const char*>(from) + row * stride, to.bytes);
  }
}

inline void store(int number, void* to, int64_t stride) {
  const Tile& from = tile(number);
  for (int row = 0; row < from.rows; ++row) {
    std::memcpy(static_cast<char*>(to) + row * stride, from.data[row], from.bytes);
  }
}

// sum = add(sum, four bytes of a row of a, four bytes of a column of b), for every sum and four.
template <typename Sum, typename Add>
inline void multiply(int sums, int a, int b, Add add) {
  Tile& to = tile(sums);
  const Tile &left = tile(a), &right = tile(b);
  if (left.rows != to.rows || right.bytes != to.bytes || right.rows != left.bytes / 4) {
    std::fprintf(stderr, "kveik: shapes of tiles %d, %d, %d do not meet\n", sums, a, b);
    std::abort();
  }
  for (int row = 0; row < to.rows; ++row) {
    for (int step = 0; step < right.rows; ++step) {
      for (int column = 0; column < to.bytes / 4; ++column) {
        Sum sum;
        std::memcpy(&sum, to.data[row] + 4 * column, sizeof sum);
        sum = add(sum, left.data[row] + 4 * step, right.data[step] + 4 * column);
        std::memcpy(to.data[row] + 4 * column, &sum, sizeof sum);
      }
    }
  }
}

inline float from_bf16(const uint8_t* at) {
  uint16_t half;
  std::memcpy(&half, at, sizeof half);
  uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline void multiply_bf16(int sums, int a, int b) {
  multiply<float>(sums, a, b, [](float sum, const uint8_t* x, const uint8_t* y) {
    float pair = from_bf16(x) * from_bf16(y);
    return sum + __builtin_fmaf(from_bf16(x + 2), from_bf16(y + 2), pair);
  });
}

inline void multiply_int8(int sums, int a, int b) {
  multiply<int32_t>(sums, a, b, [](int32_t sum, const uint8_t* x, const uint8_t* y) {
    for (int i = 0; i < 4; ++i) sum += static_cast<int8_t>(x[i]) * static_cast<int8_t>(y[i]);
    return sum;
  });
}

}  // namespace emulated
}  // namespace kveik

#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbssd
#define _tile_loadconfig(config) ::kveik::emulated::configure(config)
#define _tile_loadd(tile, from, stride) ::kveik::emulated::load(tile, from, stride)
#define _tile_stream_loadd(tile, from, stride) ::kveik::emulated::load(tile, from, stride)
#define _tile_stored(tile, to, stride) ::kveik::emulated::store(tile, to, stride)
#define _tile_zero(tile) ::kveik::emulated::zero(tile)
#define _tile_dpbf16ps(sums, a, b) ::kveik::emulated::multiply_bf16(sums, a, b)
#define _tile_dpbssd(sums, a, b) ::kveik::emulated::multiply_int8(sums, a, b)
