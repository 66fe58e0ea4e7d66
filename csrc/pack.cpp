#include "pack.h"

#include <algorithm>
#include <cstring>

namespace kveik {

namespace {

constexpr int64_t kTileValues = 512;

bf16 rounded(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return static_cast<bf16>((bits >> 16) | 0x40);
  return static_cast<bf16>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float half_to_float(uint16_t half) {
  uint32_t sign = uint32_t(half & 0x8000) << 16, magnitude = half & 0x7fff;
  uint32_t bits = magnitude >= 0x7c00 ? 0x7f800000 | (magnitude & 0x3ff) << 13 : magnitude << 13;
  float value;
  std::memcpy(&value, &bits, 4);
  if (magnitude < 0x7c00) value *= 0x1p112f;  // the exponent's other bias; exact when subnormal
  std::memcpy(&bits, &value, 4);
  bits |= sign;
  std::memcpy(&value, &bits, 4);
  return value;
}

// One row of the matrix as bfloat16.
void read_row(const void* source, Table::Stored stored, int64_t first, int64_t count, bf16* row) {
  if (stored == Table::Stored::bf16) {
    std::memcpy(row, static_cast<const bf16*>(source) + first, count * sizeof(bf16));
    return;
  }
  for (int64_t i = 0; i < count; ++i) row[i] = rounded(stored_value(source, stored, first + i));
}

// 16 columns of a panel: lines [16][width] bfloat16 -> every second tile from `tiles` on.
void pack_columns(const bf16* lines, int64_t width, bf16* tiles) {
  for (int64_t step = 0; step < width / 32; ++step) {
    bf16* tile = tiles + step * 2 * kTileValues;
    for (int64_t column = 0; column < 16; ++column) {
      const bf16* line = lines + column * width + step * 32;
      for (int64_t pair = 0; pair < 16; ++pair) {
        std::memcpy(tile + pair * 32 + column * 2, line + pair * 2, 4);
      }
    }
  }
}

}  // namespace

float stored_value(const void* source, Table::Stored stored, int64_t index) {
  switch (stored) {
    case Table::Stored::bf16: {
      uint32_t bits = uint32_t(static_cast<const bf16*>(source)[index]) << 16;
      float value;
      std::memcpy(&value, &bits, 4);
      return value;
    }
    case Table::Stored::f16:
      return half_to_float(static_cast<const uint16_t*>(source)[index]);
    default:
      return static_cast<const float*>(source)[index];
  }
}

void pack_bf16(Pool& pool, const void* source, Table::Stored stored, int64_t out, int64_t in,
               Linear& linear, Buffer& data) {
  int64_t width = (in + 127) / 128 * 128, columns = (out + 31) / 32 * 32;
  data = Buffer(width * columns * sizeof(bf16));
  pool.run([&](Worker& w) {
    auto* lines = static_cast<bf16*>(w.scratch(16 * width * sizeof(bf16)));
    std::memset(lines, 0, 16 * width * sizeof(bf16));
    for (int64_t piece = w.claim(); piece < columns / 16; piece = w.claim()) {
      for (int64_t column = 0; column < 16; ++column) {
        int64_t row = piece * 16 + column;
        if (row < out) {
          read_row(source, stored, row * in, in, lines + column * width);
        } else {
          std::memset(lines + column * width, 0, width * sizeof(bf16));
        }
      }
      auto* panel = static_cast<bf16*>(data.data()) + piece / 2 * 32 * width;
      pack_columns(lines, width, panel + piece % 2 * kTileValues);
    }
  });
  linear.type = WeightType::bf16;
  linear.in = in;
  linear.out = out;
  linear.in_padded = width;
  linear.out_padded = columns;
  linear.group = width;
  linear.data = data.data();
}

}  // namespace kveik
