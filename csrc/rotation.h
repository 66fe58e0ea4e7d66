// The rotation that spreads a row evenly, so that 8 bits are enough for it.
//
// A few inputs of a row are much larger than all others, and one scale for the row would leave the
// others no bits. Turned by a Hadamard matrix, every number of a block is a sum of all of them with
// signs of its own, and none stands out (QuaRot, Ashkboos et al. 2024). Rows of the weights are
// turned when they are packed, rows of x before they are multiplied; the product stays the same,
//
//   sum x w = sum rotate(x) rotate(w) / block
//
// since the division is left out of the rotation: it goes into the scale of the row. A block is the
// largest power of two that divides the padded row. Signs come first, by a hash of the place, so
// that a row with a mean does not gather in one number. rotate.h has the same sums, bit for bit.
#pragma once

#include <cstdint>
#include <cstring>

namespace kveik {

inline int64_t rotation_block(int64_t width) {
  constexpr int64_t kMost = 4096;  // what a first-level cache holds
  int64_t block = width & -width;
  return block < kMost ? block : kMost;
}

// The sign bit of input i; Bits: uint32_t or lanes of it.
template <typename Bits>
inline Bits rotation_sign(Bits i) {
  i *= 0x9e3779b1u;
  i ^= i >> 15;
  i *= 0x85ebca77u;
  return i & 0x80000000u;
}

// row [width] in place, in plain loops; width is a multiple of 128
inline void rotate_plain(float* row, int64_t width) {
  for (int64_t i = 0; i < width; ++i) {
    uint32_t bits;
    std::memcpy(&bits, row + i, sizeof bits);
    bits ^= rotation_sign(static_cast<uint32_t>(i));
    std::memcpy(row + i, &bits, sizeof bits);
  }
  int64_t block = rotation_block(width);
  for (int64_t half = 1; half < block; half *= 2) {
    for (int64_t pair = 0; pair < width; pair += 2 * half) {
      for (int64_t i = pair; i < pair + half; ++i) {
        float a = row[i], b = row[i + half];
        row[i] = a + b;
        row[i + half] = a - b;
      }
    }
  }
}

}  // namespace kveik
