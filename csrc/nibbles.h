// What products straight from nibbles share (linear_int4.h).
#pragma once

#include "products_int.h"

namespace kveik {
namespace KVEIK_LEVEL {

constexpr int32_t kMiddle = 8;           // the zero of a nibble, where a weight has none of its own
constexpr int64_t kNibblesAhead = 8192;  // bytes that a few rows fetch before they are multiplied

// What is subtracted from the nibbles of 16 columns of one group.
inline I32 zeros_of(const Linear& weight, int64_t sixteen, int64_t group) {
  if (weight.zeros == nullptr) return I32{} + kMiddle;
  const uint8_t* from =
      weight.zeros + (sixteen * (weight.in_padded / weight.group) + group) * kLanes;
  int32_t zeros[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) zeros[lane] = from[lane];
  return load_lanes<int32_t>(zeros);
}

}  // namespace KVEIK_LEVEL
}  // namespace kveik
