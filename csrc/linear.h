// Kernel family: products with bfloat16 weights.
//
// One output is one chain of sums along `in`, in steps that do not depend on the number of rows:
// 32 inputs at a time in a tile product (level amx), one after another elsewhere.
#pragma once

#include "operand.h"
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

// Sums of some rows x one panel: [rows][32] float32 in a worker's scratch.
using Sums = float*;

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

#if KVEIK_AMX

// Rows that one pass over a panel multiplies: as many as leave their operand in the second-level
// cache, while panel after panel goes by.
constexpr int64_t kPassRows = 256;
constexpr int64_t kPassInputs = 2048;
// Panels of a group, and of one whose sums are kept while inputs are walked in several parts.
constexpr int64_t kPassPanels = 16;
constexpr int64_t kPartPanels = 16;

inline void configure_rows(int64_t rows) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) config.set(tile, rows < 16 ? static_cast<int>(rows) : 16);
  for (int tile : {6, 7}) config.set(tile, 16);
  configure(config);
}

// What follows in memory, fetched to the second-level cache a few lines at a time.
struct Ahead {
  const char* next;
  const char* end;
  int64_t lines;  // per step

  void fetch() {
    for (int64_t i = 0; i < lines && next < end; ++i, next += 64) {
      _mm_prefetch(next, _MM_HINT_T1);
    }
  }
};

// `blocks` (1, 2) blocks of rows x one panel, over `steps` steps of 32 inputs. a: the operand's
// first block; a_block: values from block to block; lines: rows of a block. Tiles 0..3 sum. The
// operand streams past the first-level cache, where the steps of the panel stay for the next rows.
template <int blocks>
inline void tile_products(const bf16* a, int64_t a_block, int64_t lines, const bf16* b,
                          int64_t steps, bool first, Sums sums, Ahead& ahead) {
  constexpr int64_t kStride = kPanel * sizeof(float);
  float* lower = sums + 16 * kPanel;
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, kStride);
    _tile_loadd(1, sums + 16, kStride);
    if constexpr (blocks == 2) {
      _tile_loadd(2, lower, kStride);
      _tile_loadd(3, lower + 16, kStride);
    }
  }
  for (int64_t step = 0; step < steps; ++step) {
    _tile_loadd(6, b, 64);
    _tile_stream_loadd(4, a, 64);
    _tile_dpbf16ps(0, 4, 6);
    ahead.fetch();
    _tile_loadd(7, b + kTile, 64);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (blocks == 2) {
      _tile_stream_loadd(5, a + a_block, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    a += lines * 32;
    b += 2 * kTile;
  }
  _tile_stored(0, sums, kStride);
  _tile_stored(1, sums + 16, kStride);
  if constexpr (blocks == 2) {
    _tile_stored(2, lower, kStride);
    _tile_stored(3, lower + 16, kStride);
  }
}

// Rows row .. row + count x one panel, over inputs from .. to (multiples of 32).
struct Part {
  int64_t row, count, from, to;
};

// Inputs of a panel that stay in the first-level cache while the rows of a pass go by.
constexpr int64_t kNearInputs = 512;

inline void part_products(const Linear& weight, int64_t panel, const void* operand, int64_t rows,
                          const Part& part, Sums sums) {
  int64_t lines = rows < 16 ? rows : 16, blocks = (part.count + 15) / 16;
  int64_t block = 16 * weight.in_padded, inputs = part.to - part.from;
  const auto* data = static_cast<const bf16*>(weight.data) + panel * kPanel * weight.in_padded;
  const auto* next = reinterpret_cast<const char*>(data + kPanel * (weight.in_padded + part.from));
  bool last = (panel + 1) * kPanel >= weight.out_padded;
  int64_t fetched = last || blocks <= 2 ? 0 : inputs;  // lines of 64 bytes: one per input
  int64_t turns = (blocks + 1) / 2 * (inputs / kStepBf16);
  Ahead ahead{next, next + fetched * 64, (fetched + turns - 1) / turns};
  int64_t near = blocks <= 2 ? inputs : kNearInputs;
  for (int64_t from = part.from; from < part.to; from += near) {
    const auto* a = static_cast<const bf16*>(operand) + part.row / 16 * block + from * lines;
    const bf16* b = data + from * kPanel;
    int64_t steps = (part.to - from < near ? part.to - from : near) / kStepBf16;
    Sums to = sums;
    int64_t left = blocks;
    for (; left >= 2; left -= 2, a += 2 * block, to += 32 * kPanel) {
      tile_products<2>(a, block, lines, b, steps, from == 0, to, ahead);
    }
    if (left == 1) tile_products<1>(a, block, lines, b, steps, from == 0, to, ahead);
  }
}

#else

constexpr int64_t kPassRows = 64;
constexpr int64_t kPassInputs = int64_t{1} << 40;
constexpr int64_t kPassPanels = 4;
constexpr int64_t kPartPanels = 1;

inline void configure_rows(int64_t) {}

struct Part {
  int64_t row, count, from, to;
};

#if defined(__AVX512F__)
constexpr int kRowsAtOnce = 4;
#else
constexpr int kRowsAtOnce = 2;
#endif

// `count` rows x one panel: every lane of the sums is one column, even and odd inputs apart.
template <int count>
inline void row_products(const float* a, int64_t stride, const bf16* b, int64_t in_padded,
                         Sums out) {
  F32 even[count][2] = {}, odd[count][2] = {};
  for (int64_t pair = 0; pair < in_padded / 2; ++pair) {
    // two inputs: pair / 16 picks the tiles of a step, pair % 16 the line within each
    const bf16* line = b + pair / 16 * 2 * kTile + pair % 16 * 32;
    for (int side = 0; side < 2; ++side) {
      U32 both;
      std::memcpy(&both, line + side * kTile, sizeof both);
      F32 first = as_float(both << 16), second = as_float(both & 0xffff0000u);
      for (int i = 0; i < count; ++i) {
        const float* x = a + i * stride + 2 * pair;
        even[i][side] += first * x[0];
        odd[i][side] += second * x[1];
      }
    }
  }
  for (int i = 0; i < count; ++i) {
    store(out + i * kPanel, even[i][0] + odd[i][0]);
    store(out + i * kPanel + kLanes, even[i][1] + odd[i][1]);
  }
}

inline void part_products(const Linear& weight, int64_t panel, const void* operand, int64_t,
                          const Part& part, Sums sums) {
  int64_t stride = weight.in_padded, row = 0;
  const auto* a = static_cast<const float*>(operand) + part.row * stride;
  const bf16* b = static_cast<const bf16*>(weight.data) + panel * kPanel * stride;
  for (; row + kRowsAtOnce <= part.count; row += kRowsAtOnce) {
    row_products<kRowsAtOnce>(a + row * stride, stride, b, stride, sums + row * kPanel);
  }
  for (; row < part.count; ++row) {
    row_products<1>(a + row * stride, stride, b, stride, sums + row * kPanel);
  }
}

#endif

// Rows by passes, panels by groups: all passes over one group come before the next group, so that
// weights come from memory once. A group has one panel where there is one pass.
struct Work {
  int64_t rows, in_padded, panels, passes, group_size, sums_panels, groups, pieces;

  Work(int64_t rows_, int64_t in_padded_, int64_t panels_)
      : rows(rows_), in_padded(in_padded_), panels(panels_) {
    bool parts = rows > 32 && in_padded > kPassInputs;
    passes = (rows + kPassRows - 1) / kPassRows;
    group_size = parts ? kPartPanels : passes > 1 ? kPassPanels : 1;
    sums_panels = parts ? group_size : 1;
    groups = (panels + group_size - 1) / group_size;
    pieces = groups * passes;
  }

  int64_t first_row(int64_t piece) const { return piece % passes * kPassRows; }
  int64_t row_count(int64_t piece) const {
    int64_t left = rows - first_row(piece);
    return left < kPassRows ? left : kPassRows;
  }
  int64_t first_panel(int64_t piece) const { return piece / passes * group_size; }
  int64_t end_panel(int64_t piece) const {
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
  Work work(rows, weights[0]->in_padded, panels);
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
  Work work(rows, gate.in_padded, gate.out_padded / kPanel);
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
