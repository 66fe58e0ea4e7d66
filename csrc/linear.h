// Kernel family: products with bfloat16 weights.
//
// One output is one chain of sums along `in`, in steps that do not depend on the number of rows.
// How some rows meet one panel is the level's:
//
//   products_tiles.h   level amx: 32 inputs at a time in a tile product
//   products_pairs.h   level avx512_bf16: pairs of inputs
//   products_lanes.h   elsewhere: one input after another, as float32
//
// Each has `part_products`, and how many rows and panels go by before the next ones.
#pragma once

#include "operand.h"
#include "rows.h"
#include "simd.h"
#if KVEIK_AMX
#include "products_tiles.h"
#elif KVEIK_PAIRS
#include "products_pairs.h"
#else
#include "products_lanes.h"
#endif

namespace kveik {
namespace KVEIK_LEVEL {

// Rows of the operand that tile products read: whole blocks of 16 where there are more.
inline int64_t operand_rows(int64_t rows) { return rows > 16 ? padded(rows, 16) : rows; }

inline void convert_bf16(const float* x, int64_t x_stride, int64_t rows, int64_t in, void* operand,
                         Worker& w) {
  int64_t width = padded(in, 128);
  Share own = share(w, operand_rows(rows));
  for (int64_t row = own.begin; row < own.end; ++row) {
    const float* from = x + row * x_stride;
    int64_t filled = row < rows ? in : 0;
    for (int64_t i = 0; i < width; i += 32) {
      Operand* out = operand_at(operand, rows, width, row, i);
      for (int64_t half = i; half < i + 32; half += kLanes, out += kLanes) {
        put_operand(out, half < filled ? load(from + half, filled - half) : F32{});
      }
    }
  }
}

// One finished panel of sums: rows first .. first + rows of y.
inline void put(const float* sums, const Linear& weight, int64_t panel, int64_t first, int64_t rows,
                float* y, int64_t y_stride) {
  int64_t column = panel * kPanel;
  int64_t columns = weight.out - column < kPanel ? weight.out - column : kPanel;
  F32 bias[2] = {};
  if (weight.bias != nullptr) {
    bias[0] = load(weight.bias + column);
    bias[1] = load(weight.bias + column + kLanes);
  }
  bool whole = columns == kPanel && rows > 32 && y_stride % kLanes == 0 && aligned(y);
  for (int64_t row = 0; row < rows; ++row, sums += kPanel) {
    float* out = y + (first + row) * y_stride + column;
    if (whole) {
      stream(out, load(sums) + bias[0]);
      stream(out + kLanes, load(sums + kLanes) + bias[1]);
      continue;
    }
    store(out, load(sums) + bias[0], columns);
    if (columns > kLanes) store(out + kLanes, load(sums + kLanes) + bias[1], columns - kLanes);
  }
}

// Zeros behind the last panel of an operand of `width` inputs.
inline void clear_behind(void* operand, int64_t all_rows, int64_t width, int64_t from,
                         int64_t first, int64_t rows) {
  for (int64_t column = from; column < width; column += kPanel) {
    for (int64_t row = first; row < first + rows; ++row) {
      std::memset(operand_at(operand, all_rows, width, row, column), 0, kPanel * sizeof(Operand));
    }
  }
}

// silu(gate) * up of one finished panel of each: to rows of y, or (y null) to the operand of the
// next product, whose inputs are these columns.
inline void put_gated(const float* gates, const float* ups, const Linear& gate, const Linear& up,
                      int64_t panel, int64_t first, int64_t rows, int64_t all_rows, float* y,
                      int64_t y_stride, void* operand) {
  int64_t column = panel * kPanel, width = padded(gate.out, 128);
  if (y == nullptr && column + kPanel == gate.out_padded) {
    clear_behind(operand, all_rows, width, gate.out_padded, first, rows);
  }
  for (int64_t part = 0; part < kPanel; part += kLanes) {
    F32 gate_bias = gate.bias ? load(gate.bias + column + part) : F32{};
    F32 up_bias = up.bias ? load(up.bias + column + part) : F32{};
    for (int64_t row = 0; row < rows; ++row) {
      F32 value = silu(load(gates + row * kPanel + part) + gate_bias) *
                  (load(ups + row * kPanel + part) + up_bias);
      if (y == nullptr) {
        put_operand(operand_at(operand, all_rows, width, first + row, column) + part, value);
      } else if (column + part < gate.out) {
        store(y + (first + row) * y_stride + column + part, value, gate.out - column - part);
      }
    }
  }
}

// Rows by passes, panels by groups: all passes over one group come before the next group, so that
// weights come from memory once. Where there is one pass a group has one panel, or, for few rows, a
// stretch of them.
struct Work {
  int64_t rows, in_padded, panels, passes, group_size, sums_panels, pieces;
  Stretches stretches;

  Work(int64_t rows_, int64_t in_padded_, int64_t panels_, const Worker& w)
      : rows(rows_),
        in_padded(in_padded_),
        panels(panels_),
        stretches(panels_, in_padded_ * kPanel * sizeof(bf16), w) {
    bool parts = rows > 32 && in_padded > kPassInputs;
    passes = (rows + kPassRows - 1) / kPassRows;
    group_size = parts ? kPartPanels : passes > 1 ? kPassPanels : 1;
    sums_panels = parts ? group_size : 1;
    int64_t groups = (panels + group_size - 1) / group_size;
    pieces = few() ? stretches.count : groups * passes;
  }

  bool few() const { return rows <= 16; }  // so memory sets the pace
  int64_t first_row(int64_t piece) const { return piece % passes * kPassRows; }
  int64_t row_count(int64_t piece) const {
    int64_t left = rows - first_row(piece);
    return left < kPassRows ? left : kPassRows;
  }
  int64_t first_panel(int64_t piece) const {
    return few() ? stretches.begin(piece) : piece / passes * group_size;
  }
  int64_t end_panel(int64_t piece) const {
    if (few()) return stretches.end(piece);
    int64_t end = first_panel(piece) + group_size;
    return end < panels ? end : panels;
  }
  // Inputs of one part: as equal as steps allow.
  int64_t part_inputs() const {
    if (rows <= 32 || in_padded <= kPassInputs) return in_padded;
    int64_t parts = (in_padded + kPassInputs - 1) / kPassInputs;
    return padded((in_padded + parts - 1) / parts, 128);
  }
  // Floats of the sums of one panel.
  int64_t sums_size() const { return padded(rows < kPassRows ? rows : kPassRows, 32) * kPanel; }
};

// The matrix that panel `panel` of several side by side belongs to; `panel` becomes its own.
inline int64_t matrix_of(const Linear* const* weights, int64_t& panel) {
  int64_t which = 0;
  while (panel >= weights[which]->out_padded / kPanel) {
    panel -= weights[which++]->out_padded / kPanel;
  }
  return which;
}

inline void multiply_bf16(const Linear* const* weights, float* const* y, const int64_t* y_strides,
                          int64_t count, const void* operand, int64_t rows, Worker& w) {
  int64_t panels = 0;
  for (int64_t i = 0; i < count; ++i) panels += weights[i]->out_padded / kPanel;
  Work work(rows, weights[0]->in_padded, panels, w);
  auto* sums = static_cast<float*>(w.scratch(work.sums_panels * work.sums_size() * sizeof(float)));
  int64_t inputs = work.part_inputs(), width = work.in_padded;
  configure_rows(rows);
  for (int64_t piece = w.claim(); piece < work.pieces; piece = w.claim()) {
    int64_t row = work.first_row(piece), now = work.row_count(piece);
    int64_t begin = work.first_panel(piece), end = work.end_panel(piece);
    for (int64_t from = 0; from < width; from += inputs) {
      Part part{row, now, from, from + inputs < width ? from + inputs : width};
      for (int64_t panel = begin; panel < end; ++panel) {
        int64_t own = panel, which = matrix_of(weights, own);
        Sums to = sums + (panel - begin) % work.sums_panels * work.sums_size();
        part_products(*weights[which], own, operand, rows, part, to);
        if (part.to == width) put(to, *weights[which], own, row, now, y[which], y_strides[which]);
      }
    }
  }
  streamed();
}

// y null: the result goes to `next`, the operand of a product that takes gate.out inputs.
inline void multiply_gated_bf16(const Linear& gate, const Linear& up, const void* operand,
                                int64_t rows, float* y, int64_t y_stride, void* next, Worker& w) {
  Work work(rows, gate.in_padded, gate.out_padded / kPanel, w);
  int64_t size = work.sums_size(), inputs = work.part_inputs(), width = work.in_padded;
  auto* sums = static_cast<float*>(w.scratch(2 * work.sums_panels * size * sizeof(float)));
  configure_rows(rows);
  for (int64_t piece = w.claim(); piece < work.pieces; piece = w.claim()) {
    int64_t row = work.first_row(piece), now = work.row_count(piece);
    int64_t begin = work.first_panel(piece), end = work.end_panel(piece);
    for (int64_t from = 0; from < width; from += inputs) {
      Part part{row, now, from, from + inputs < width ? from + inputs : width};
      for (int64_t panel = begin; panel < end; ++panel) {
        Sums gates = sums + (panel - begin) % work.sums_panels * 2 * size, ups = gates + size;
        part_products(gate, panel, operand, rows, part, gates);
        part_products(up, panel, operand, rows, part, ups);
        if (part.to < width) continue;
        put_gated(gates, ups, gate, up, panel, row, now, rows, y, y_stride, next);
      }
    }
  }
}

}  // namespace KVEIK_LEVEL
}  // namespace kveik
