// Kernel family: everything that looks at one row or one element at a time.
#pragma once

#include <cmath>

#include "operand.h"
#include "simd.h"

namespace kveik {
namespace KVEIK_LEVEL {

// The row that is normed: x, or x + residual, which is stored in `sum`.
inline const float* summed(const float* x, const float* residual, float* sum, int64_t at,
                           int64_t width) {
  x += at;
  if (residual == nullptr) return x;
  residual += at;
  sum += at;
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) store(sum + i, load(residual + i) + load(x + i));
  for (; i < width; ++i) sum[i] = residual[i] + x[i];
  return sum;
}

// Zhang and Sennrich 2019: x / sqrt(mean(x^2) + eps) * weight. y null: to the operand of bfloat16
// products that take these rows.
inline void rms_norm(const float* x, const float* residual, const float* weight, float eps,
                     int64_t rows, int64_t width, float* sum_out, float* y, void* operand,
                     Worker& w) {
  Share own = share(w, rows);
  int64_t filled = padded(width, 128);
  for (int64_t row = own.begin; row < own.end; ++row) {
    int64_t at = row * width;
    const float* in = summed(x, residual, sum_out, at, width);
    F32 squares = {};
    for (int64_t i = 0; i < width; i += kLanes) {
      F32 v = load(in + i, width - i);
      squares += v * v;
    }
    float factor = 1.0f / std::sqrt(sum(squares) / static_cast<float>(width) + eps);
    for (int64_t i = 0; i < width; i += kLanes) {
      F32 v = load(in + i, width - i) * factor * load(weight + i, width - i);
      if (y != nullptr) {
        store(y + at + i, v, width - i);
      } else {
        put_operand(operand_at(operand, rows, filled, row, i), v);
      }
    }
    if (y != nullptr) continue;
    for (int64_t i = padded(width, kLanes); i < filled; i += kLanes) {
      put_operand(operand_at(operand, rows, filled, row, i), F32{});
    }
  }
}

// Ba et al. 2016: (x - mean) / sqrt(variance + eps) * weight + bias
inline void layer_norm(const float* x, const float* residual, const float* weight,
                       const float* bias, float eps, int64_t rows, int64_t width, float* sum_out,
                       float* y, Worker& w) {
  Share own = share(w, rows);
  float count = static_cast<float>(width);
  for (int64_t row = own.begin; row < own.end; ++row) {
    int64_t at = row * width;
    const float* in = summed(x, residual, sum_out, at, width);
    F32 total = {};
    for (int64_t i = 0; i < width; i += kLanes) total += load(in + i, width - i);
    float mean = sum(total) / count;
    F32 squares = {};
    for (int64_t i = 0; i < width; i += kLanes) {
      F32 centred = load(in + i, width - i) - mean;
      if (width - i < kLanes) centred = load(reinterpret_cast<float*>(&centred), width - i);
      squares += centred * centred;
    }
    float factor = 1.0f / std::sqrt(sum(squares) / count + eps);
    for (int64_t i = 0; i < width; i += kLanes) {
      F32 v = (load(in + i, width - i) - mean) * factor * load(weight + i, width - i);
      if (bias != nullptr) v += load(bias + i, width - i);
      store(y + at + i, v, width - i);
    }
  }
}

inline F32 silu(const F32& x) { return x / (exp(-x) + 1.0f); }

inline void silu_mul(const float* gate, const float* up, int64_t size, float* y, Worker& w) {
  Share own = share(w, size, kLanes);
  for (int64_t i = own.begin; i < own.end; i += kLanes) {
    store(y + i, silu(load(gate + i, size - i)) * load(up + i, size - i), size - i);
  }
}

// Hendrycks and Gimpel 2016: x * Phi(x). 1/2 (1 + tanh u) = 1 / (1 + e^-2u).
inline void gelu(const float* x, int64_t size, bool tanh_form, float* y, Worker& w) {
  Share own = share(w, size, kLanes);
  for (int64_t i = own.begin; i < own.end; i += kLanes) {
    F32 v = load(x + i, size - i);
    if (tanh_form) {
      F32 twice = (v + v * v * v * 0.044715f) * 1.5957691216f;
      store(y + i, v / (exp(-twice) + 1.0f), size - i);
    } else {
      int64_t lanes = size - i < kLanes ? size - i : kLanes;
      for (int64_t lane = 0; lane < lanes; ++lane) {
        double value = x[i + lane];
        y[i + lane] = static_cast<float>(0.5 * value * std::erfc(-value * M_SQRT1_2));
      }
    }
  }
}

inline void add(const float* x, const float* y, int64_t size, float* sum_out, Worker& w) {
  Share own = share(w, size, kLanes);
  for (int64_t i = own.begin; i < own.end; i += kLanes) {
    store(sum_out + i, load(x + i, size - i) + load(y + i, size - i), size - i);
  }
}

inline float half_to_float(uint16_t half) {
  uint32_t sign = uint32_t(half & 0x8000) << 16, magnitude = half & 0x7fff;
  float value;
  if (magnitude >= 0x7c00) {  // infinity, NaN
    uint32_t bits = sign | 0x7f800000 | (magnitude & 0x3ff) << 13;
    std::memcpy(&value, &bits, 4);
    return value;
  }
  uint32_t bits = magnitude << 13;
  std::memcpy(&value, &bits, 4);
  value *= 0x1p112f;  // rebias the exponent; exact for subnormal halves too
  return sign ? -value : value;
}

inline float table_value(const Table& table, int64_t index) {
  switch (table.stored) {
    case Table::Stored::bf16: {
      uint32_t bits = uint32_t(static_cast<const uint16_t*>(table.data)[index]) << 16;
      float value;
      std::memcpy(&value, &bits, 4);
      return value;
    }
    case Table::Stored::f16:
      return half_to_float(static_cast<const uint16_t*>(table.data)[index]);
    default:
      return static_cast<const float*>(table.data)[index];
  }
}

inline void embed(const Table& table, const int64_t* ids, const float* added, int64_t rows,
                  float* y, Worker& w) {
  Share own = share(w, rows);
  for (int64_t row = own.begin; row < own.end; ++row) {
    float* out = y + row * table.width;
    int64_t first = ids[row] * table.width;
    for (int64_t i = 0; i < table.width; ++i) out[i] = table_value(table, first + i);
    if (added == nullptr) continue;
    for (int64_t i = 0; i < table.width; ++i) out[i] += added[row * table.width + i];
  }
}

}  // namespace KVEIK_LEVEL
}  // namespace kveik
