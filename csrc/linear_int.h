// Kernel family: products with int8 and int4 weights, exact integers inside a group of inputs.
//
// The operand (operand_int.h) is x rounded to whole numbers: weights that were made at load are
// rotated, and x too, and 8 bits are enough; those that a checkpoint stores quantised are as they
// are, and x has 16 bits, which are multiplied as two rows of bytes. For every output and every
// group of inputs, left to right,
//
//   sum += weight_scale[group] * float(int32 sum)                     bytes
//   sum += weight_scale[group] * (256 * float(hi sum) + float(lo sum))    words
//
// and at the end output = row_scale * sum (+ bias), as fused multiply-adds on every level. Inside a
// group the sums are integers: neither their order nor the instructions matter, and all levels
// compute the same bits. A row that holds infinity or NaN gives NaN everywhere, and no other does.
#pragma once

#include "linear_int4.h"

namespace kveik {
namespace KVEIK_LEVEL {

constexpr int64_t kChunk = 512;  // inputs of int4 that a few rows unpack at once: 16 KB

// ---- from integers to rows of y -----------------------------------------------------------------

inline F32 bias_of(const Linear& weight, int64_t column) {
  return weight.bias != nullptr ? load(weight.bias + column) : F32{};
}

inline int64_t panel_bytes(const Linear& weight) {
  return weight.in_padded * kPanel / (weight.type == WeightType::int4 ? 2 : 1);
}

// What comes next in memory while a panel is multiplied: for few rows what follows at once, for
// many the next panel.
inline Ahead ahead_of(const Linear& weight, int64_t panel, int64_t lines, bool nibbles) {
  int64_t bytes = panel_bytes(weight);
  const auto* data = static_cast<const char*>(weight.data);
  int64_t panels = weight.out_padded / kPanel;
  int64_t pass = nibbles ? kNibblePass : kPassLines, fetches = nibbles ? 4 : kFetches;
  if (lines <= pass) {
    int64_t far = nibbles ? kNibblesAhead : weight.type == WeightType::int4 ? 0 : kFewAhead;
    if (far == 0 || (!nibbles && lines > kFewLines)) return {nullptr, nullptr, 0};
    return {data + panel * bytes + far, data + panels * bytes, kStepBytes / 64 / fetches, !nibbles};
  }
  if (panel + 1 == panels) return {nullptr, nullptr, 0};
  int64_t steps = weight.in_padded / (nibbles ? kPackedInputs : kStepInt);
  fetches *= (lines + pass - 1) / pass * steps;
  return {data + (panel + 1) * bytes, data + (panel + 2) * bytes,
          (bytes / 64 + fetches - 1) / fetches};
}

// A panel's weights as a worker goes over them: nibbles that are not multiplied as they lie are
// unpacked into `memory`, all at once where many rows follow, chunk by chunk in L1 where few do.
struct PanelTiles {
  const Linear& weight;
  int64_t panel, lines;
  int8_t* memory;
  bool nibbles;
  Ahead ahead;
  int64_t begin = 0, end = 0;  // inputs that are unpacked now

  PanelTiles(const Linear& of, int64_t number, int64_t all_lines, int8_t* unpacked)
      : weight(of),
        panel(number),
        lines(all_lines),
        memory(unpacked),
        nibbles(from_nibbles(of, all_lines)),
        ahead(ahead_of(of, number, all_lines, nibbles)) {}

  static int64_t chunk(const Linear& weight, int64_t lines) {
    if (lines > kLines) return weight.in_padded;
    int64_t grain = weight.group < 128 ? 128 : weight.group;
    int64_t inputs = grain < kChunk ? kChunk / grain * grain : grain;
    return inputs % 128 != 0 || inputs > weight.in_padded ? weight.in_padded : inputs;
  }

  // Tiles from input k on, as far as its group goes.
  const int8_t* from(int64_t k) {
    if (weight.type == WeightType::int8) {
      return static_cast<const int8_t*>(weight.data) + (panel * weight.in_padded + k) * kPanel;
    }
    if (k >= end || k < begin) {
      begin = k;
      end =
          k + chunk(weight, lines) < weight.in_padded ? k + chunk(weight, lines) : weight.in_padded;
      unpack(weight, panel, begin, end, memory);
    }
    return memory + (k - begin) * kPanel;
  }
};

// Rows first .. first + rows (at most 32 lines) of the operand x the panel.
template <int P>
inline void row_products(const IntOperand<P>& operand, int64_t first, int64_t rows,
                         PanelTiles& tiles, RowSums<P>& sums) {
  for (int64_t k = 0; k < tiles.weight.in_padded; k += tiles.weight.group) {
    Group group{tiles.weight, tiles.panel, k / tiles.weight.group};
    group.fetch_scales();
    if (tiles.nibbles) {
      products_from_nibbles(operand, first, rows, group, sums, tiles.ahead);
    } else {
      int_products(operand, first, rows, tiles.from(k), group, sums, tiles.ahead);
    }
  }
}

// One panel of `weight` (and of `up`, where it is not null: then silu(weight x) * (up x)) times all
// rows of a section -> y.
struct PanelProduct {
  const Linear* weight;
  const Linear* up;
  int64_t panel;
  float* y;
  int64_t y_stride;
};

struct Section {
  int64_t first, rows;
};

inline void prefetch_rows(const PanelProduct& product, int64_t first, int64_t rows) {
  const float* out = product.y + first * product.y_stride + product.panel * kPanel;
  for (int64_t row = 0; row < rows; ++row) {
    __builtin_prefetch(out + row * product.y_stride, 1);
    __builtin_prefetch(out + row * product.y_stride + kLanes, 1);
  }
}

template <int P>
inline void put_rows(const PanelProduct& product, const IntOperand<P>& operand, int64_t first,
                     int64_t rows, const RowSums<P>& sums, const RowSums<P>& up) {
  for (int64_t part = 0; part < kPanel; part += kLanes) {
    int64_t column = product.panel * kPanel + part, columns = product.weight->out - column;
    if (columns <= 0) return;
    F32 bias = bias_of(*product.weight, column);
    F32 up_bias = product.up != nullptr ? bias_of(*product.up, column) : F32{};
    for (int64_t row = 0; row < rows; ++row) {
      F32 scale = all(operand.scales[first + row]);
      F32 value = fused(load(sums.totals[row] + part), scale, bias);
      if (product.up != nullptr) {
        value = silu(value) * fused(load(up.totals[row] + part), scale, up_bias);
      }
      store(product.y + (first + row) * product.y_stride + column, value, columns);
    }
  }
}

inline size_t unpacked_bytes(const Linear& weight, int64_t lines) {
  if (weight.type != WeightType::int4 || from_nibbles(weight, lines)) return 0;
  return PanelTiles::chunk(weight, lines) * kPanel;
}

template <int P>
inline void panel_products(const PanelProduct& product, const IntOperand<P>& operand,
                           const Section& section, int8_t* memory) {
  int64_t lines = section.rows * P;
  const Linear& other = product.up != nullptr ? *product.up : *product.weight;
  PanelTiles tiles(*product.weight, product.panel, lines, memory);
  PanelTiles up_tiles(other, product.panel, lines, memory + unpacked_bytes(*product.weight, lines));
  RowSums<P> sums, up;
  for (int64_t row = 0; row < section.rows; row += kTogether<P>) {
    int64_t now = section.rows - row < kTogether<P> ? section.rows - row : kTogether<P>;
    int64_t first = section.first + row;
    if (row == 0 || now < kTogether<P>) configure_int(now * P);
    prefetch_rows(product, first, now);
    row_products(operand, first, now, tiles, sums);
    if (product.up != nullptr) row_products(operand, first, now, up_tiles, up);
    put_rows(product, operand, first, now, sums, up);
  }
}

// ---- the family's entries -----------------------------------------------------------------------

// Rows whose operand stays in L2 while panels go by: 1 MB of it.
template <int P>
inline int64_t section_rows(int64_t width) {
  int64_t rows = (1 << 20) / (width * P) / kTogether<P> * kTogether<P>;
  return rows < kTogether<P> ? kTogether<P> : rows;
}

// Calls body(panel, section) for this worker's part of all sections x all panels.
template <typename Body>
inline void each_piece(int64_t panels, int64_t panel_bytes, int64_t rows, int64_t height, Worker& w,
                       Body body) {
  int64_t sections = (rows + height - 1) / height;
  Stretches stretches(panels, panel_bytes, w);
  for (int64_t piece = w.claim(); piece < stretches.count * sections; piece = w.claim()) {
    int64_t first = piece / stretches.count * height, own = piece % stretches.count;
    Section section{first, rows - first < height ? rows - first : height};
    int64_t end = stretches.end(own);
    for (int64_t panel = stretches.begin(own); panel < end; ++panel) body(panel, section);
  }
}

template <int P>
inline void multiply_planes(const Linear* const* weights, float* const* y, const int64_t* y_strides,
                            int64_t count, const IntOperand<P>& operand, Worker& w) {
  int64_t panels = 0, lines = operand.rows * P;
  size_t unpacked = 0;
  for (int64_t i = 0; i < count; ++i) {
    panels += weights[i]->out_padded / kPanel;
    size_t wanted = unpacked_bytes(*weights[i], lines);
    unpacked = wanted > unpacked ? wanted : unpacked;
  }
  auto* scratch = static_cast<int8_t*>(w.scratch(unpacked));
  each_piece(panels, panel_bytes(*weights[0]), operand.rows, section_rows<P>(operand.width), w,
             [&](int64_t panel, const Section& section) {
               int64_t own = panel, i = matrix_of(weights, own);
               panel_products({weights[i], nullptr, own, y[i], y_strides[i]}, operand, section,
                              scratch);
             });
}

inline void multiply_int(const Linear* const* weights, float* const* y, const int64_t* y_strides,
                         int64_t count, const void* memory, int64_t rows, Worker& w) {
  int64_t width = weights[0]->in_padded;
  if (weights[0]->rotated) {
    return multiply_planes(weights, y, y_strides, count, IntOperand<1>(memory, rows, width), w);
  }
  multiply_planes(weights, y, y_strides, count, IntOperand<2>(memory, rows, width), w);
}

template <int P>
inline void multiply_gated_planes(const Linear& gate, const Linear& up,
                                  const IntOperand<P>& operand, float* y, int64_t y_stride,
                                  Worker& w) {
  int64_t lines = operand.rows * P;
  size_t unpacked = unpacked_bytes(gate, lines) + unpacked_bytes(up, lines);
  auto* scratch = static_cast<int8_t*>(w.scratch(unpacked));
  each_piece(gate.out_padded / kPanel, panel_bytes(gate), operand.rows,
             section_rows<P>(operand.width), w, [&](int64_t panel, const Section& section) {
               panel_products({&gate, &up, panel, y, y_stride}, operand, section, scratch);
             });
}

inline void multiply_gated_int(const Linear& gate, const Linear& up, const void* memory,
                               int64_t rows, float* y, int64_t y_stride, Worker& w) {
  int64_t width = gate.in_padded;
  if (gate.rotated) {
    return multiply_gated_planes(gate, up, IntOperand<1>(memory, rows, width), y, y_stride, w);
  }
  multiply_gated_planes(gate, up, IntOperand<2>(memory, rows, width), y, y_stride, w);
}

}  // namespace KVEIK_LEVEL
}  // namespace kveik
