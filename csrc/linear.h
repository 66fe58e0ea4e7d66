// Kernel family: products with bfloat16 weights.
//
// The operand is x rounded to bfloat16, row-major, padded with zeros to a multiple of 128 inputs
// and of 16 rows: [rows_padded][in_padded], bfloat16 at level amx, the same values as float32
// elsewhere. One output is one chain of sums along `in`, in steps that do not depend on the number
// of rows: 32 inputs at a time in a tile product (level amx), one after another elsewhere.
#pragma once

#include "rows.h"
#include "simd.h"
#if KVEIK_AMX
#include "tile.h"
#endif

namespace kveik {
namespace KVEIK_LEVEL {

constexpr int64_t kPanel = 32;     // columns
constexpr int64_t kStepBf16 = 32;  // inputs of one tile of bfloat16
constexpr int64_t kTile = 512;     // bfloat16 values

#if KVEIK_AMX
using Operand = bf16;
#else
using Operand = float;
#endif

inline int64_t padded(int64_t count, int64_t grain) { return (count + grain - 1) / grain * grain; }

inline size_t operand_bytes_bf16(int64_t rows, int64_t in) {
  return padded(rows, 16) * padded(in, 128) * sizeof(Operand);
}

inline void convert_bf16(const float* x, int64_t x_stride, int64_t rows, int64_t in, void* operand,
                         Worker& w) {
  int64_t width = padded(in, 128);
  Share own = share(w, padded(rows, 16));
  for (int64_t row = own.begin; row < own.end; ++row) {
    Operand* out = static_cast<Operand*>(operand) + row * width;
    const float* from = x + row * x_stride;
    int64_t filled = row < rows ? in : 0;
    for (int64_t i = 0; i < width; i += kLanes) {
      F32 v = i < filled ? load(from + i, filled - i) : F32{};
#if KVEIK_AMX
      store(out + i, v);
#else
      store(out + i, through_bf16(v));
#endif
    }
  }
}

// Sums of up to 32 rows x 32 columns, ready for bias and activation.
struct alignas(64) Block {
  float sums[32][kPanel];
};

// One finished block: rows first .. first + rows of y, columns of panel `panel`.
inline void put(const Block& block, const Linear& weight, int64_t panel, int64_t first,
                int64_t rows, float* y, int64_t y_stride) {
  int64_t column = panel * kPanel;
  int64_t columns = weight.out - column < kPanel ? weight.out - column : kPanel;
  F32 bias[2] = {};
  if (weight.bias != nullptr) {
    bias[0] = load(weight.bias + column);
    bias[1] = load(weight.bias + column + kLanes);
  }
  for (int64_t row = 0; row < rows; ++row) {
    float* out = y + (first + row) * y_stride + column;
    store(out, load(block.sums[row]) + bias[0], columns);
    if (columns > kLanes)
      store(out + kLanes, load(block.sums[row] + kLanes) + bias[1], columns - kLanes);
  }
}

// silu(gate) * up, each with its bias.
inline void put_gated(const Block& gate, const Block& up, const Linear& gate_weight,
                      const Linear& up_weight, int64_t panel, int64_t first, int64_t rows, float* y,
                      int64_t y_stride) {
  int64_t column = panel * kPanel;
  for (int64_t part = 0; part < kPanel && column + part < gate_weight.out; part += kLanes) {
    F32 gate_bias = gate_weight.bias ? load(gate_weight.bias + column + part) : F32{};
    F32 up_bias = up_weight.bias ? load(up_weight.bias + column + part) : F32{};
    for (int64_t row = 0; row < rows; ++row) {
      F32 value =
          silu(load(gate.sums[row] + part) + gate_bias) * (load(up.sums[row] + part) + up_bias);
      store(y + (first + row) * y_stride + column + part, value, gate_weight.out - column - part);
    }
  }
}

#if KVEIK_AMX

// Up to 32 rows of the operand (`upper` and `lower` of them, as configured) x one panel.
// a [rows][stride], b the panel, steps of 32 inputs.
template <bool two>
inline void tile_products(const bf16* a, int64_t stride, const bf16* b, int64_t steps,
                          Block& block) {
  int64_t bytes = stride * 2;
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (two) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t step = 0; step < steps; ++step) {
    _tile_loadd(6, b, 64);
    _tile_loadd(7, b + kTile, 64);
    _tile_loadd(4, a, bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (two) {
      _tile_loadd(5, a + 16 * stride, bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    a += kStepBf16;
    b += 2 * kTile;
  }
  _tile_stored(0, block.sums[0], sizeof block.sums[0]);
  _tile_stored(1, block.sums[0] + 16, sizeof block.sums[0]);
  if constexpr (two) {
    _tile_stored(2, block.sums[16], sizeof block.sums[0]);
    _tile_stored(3, block.sums[16] + 16, sizeof block.sums[0]);
  }
}

inline void block_products(const Linear& weight, int64_t panel, const void* operand, int64_t first,
                           int64_t rows, Block& block) {
  const bf16* a = static_cast<const bf16*>(operand) + first * weight.in_padded;
  const bf16* b = static_cast<const bf16*>(weight.data) + panel * kPanel * weight.in_padded;
  int64_t steps = weight.in_padded / kStepBf16;
  if (rows > 16) {
    tile_products<true>(a, weight.in_padded, b, steps, block);
  } else {
    tile_products<false>(a, weight.in_padded, b, steps, block);
  }
}

inline void configure_rows(int64_t rows) {
  int upper = rows < 16 ? static_cast<int>(rows) : 16;
  int lower = rows > 16 ? static_cast<int>(rows - 16) : 0;
  configure(product_tiles(upper, lower));
}

#else

// `count` rows x one panel: every lane of the sums is one column.
template <int count>
inline void row_products(const float* a, int64_t stride, const bf16* b, int64_t in_padded,
                         Block& block, int64_t row) {
  F32 sums[count][2] = {};
  for (int64_t step = 0; step < in_padded / 2; ++step) {
    // two inputs: step / 16 picks the pair of tiles, step % 16 the row within each
    const bf16* line = b + step / 16 * 2 * kTile + step % 16 * 32;
    U32 left, right;
    std::memcpy(&left, line, sizeof left);
    std::memcpy(&right, line + kTile, sizeof right);
    F32 even[2] = {as_float(left << 16), as_float(right << 16)};
    F32 odd[2] = {as_float(left & 0xffff0000u), as_float(right & 0xffff0000u)};
    for (int i = 0; i < count; ++i) {
      const float* x = a + i * stride + 2 * step;
      sums[i][0] += even[0] * x[0];
      sums[i][1] += even[1] * x[0];
      sums[i][0] += odd[0] * x[1];
      sums[i][1] += odd[1] * x[1];
    }
  }
  for (int i = 0; i < count; ++i) {
    store(block.sums[row + i], sums[i][0]);
    store(block.sums[row + i] + kLanes, sums[i][1]);
  }
}

inline void block_products(const Linear& weight, int64_t panel, const void* operand, int64_t first,
                           int64_t rows, Block& block) {
  const float* a = static_cast<const float*>(operand) + first * weight.in_padded;
  const bf16* b = static_cast<const bf16*>(weight.data) + panel * kPanel * weight.in_padded;
  int64_t row = 0, stride = weight.in_padded;
  for (; row + 4 <= rows; row += 4) {
    row_products<4>(a + row * stride, stride, b, weight.in_padded, block, row);
  }
  for (; row < rows; ++row) {
    row_products<1>(a + row * stride, stride, b, weight.in_padded, block, row);
  }
}

inline void configure_rows(int64_t) {}

#endif

inline void multiply_bf16(const Linear* const* weights, float* const* y, const int64_t* y_strides,
                          int64_t count, const void* operand, int64_t rows, Worker& w) {
  int64_t panels = 0;
  for (int64_t i = 0; i < count; ++i) panels += weights[i]->out_padded / kPanel;
  Block block;
  for (int64_t piece = w.claim(); piece < panels; piece = w.claim()) {
    int64_t which = 0, panel = piece;
    while (panel >= weights[which]->out_padded / kPanel) {
      panel -= weights[which++]->out_padded / kPanel;
    }
    for (int64_t first = 0; first < rows; first += 32) {
      int64_t now = rows - first < 32 ? rows - first : 32;
      if (first == 0 || now < 32) configure_rows(now);
      block_products(*weights[which], panel, operand, first, now, block);
      put(block, *weights[which], panel, first, now, y[which], y_strides[which]);
    }
  }
}

inline void multiply_gated_bf16(const Linear& gate, const Linear& up, const void* operand,
                                int64_t rows, float* y, int64_t y_stride, Worker& w) {
  Block gates, ups;
  for (int64_t panel = w.claim(); panel < gate.out_padded / kPanel; panel = w.claim()) {
    for (int64_t first = 0; first < rows; first += 32) {
      int64_t now = rows - first < 32 ? rows - first : 32;
      if (first == 0 || now < 32) configure_rows(now);
      block_products(gate, panel, operand, first, now, gates);
      block_products(up, panel, operand, first, now, ups);
      put_gated(gates, ups, gate, up, panel, first, now, y, y_stride);
    }
  }
}

}  // namespace KVEIK_LEVEL
}  // namespace kveik
