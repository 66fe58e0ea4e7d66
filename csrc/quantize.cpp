#include "quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "pack.h"

#define KVEIK_LEVEL quantizing
#include "simd.h"

namespace kveik {
namespace quantizing {

constexpr int64_t kColumns = 16;  // of one tile
constexpr int64_t kTileBytes = 1024;
constexpr int kFactors = 13;  // scales that are tried for int4, of each sign
constexpr float kFirstFactor = 0.75f, kFactorStep = 0.025f;

int64_t padded(int64_t count, int64_t grain) { return (count + grain - 1) / grain * grain; }

void read_row(const void* source, Table::Stored stored, int64_t first, int64_t count, float* row) {
  if (stored == Table::Stored::f32) {
    std::memcpy(row, static_cast<const float*>(source) + first, count * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < count; ++i) row[i] = stored_value(source, stored, first + i);
}

F32 rounded(F32 x) {
  const F32 magic = all(12582912.0f);  // 1.5 * 2^23
  return (x + magic) - magic;
}

F32 limited(F32 x, float low, float high) {
  x = x < low ? all(low) : x;
  return x > high ? all(high) : x;
}

// ---- one group of one row: x [count], a multiple of 16 ----------------------------------------

float largest_magnitude(const float* x, int64_t count) {
  F32 most = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    F32 v = load(x + i);
    most = larger(most, v < 0 ? -v : v);
  }
  return largest(most);
}

bool finite(const float* x, int64_t count) {
  F32 zeros = {};
  for (int64_t i = 0; i < count; i += kLanes) zeros += load(x + i) * 0.0f;
  return sum(zeros) == 0;
}

void put_group(const float* x, int64_t count, float scale, float low, float high, int shift,
               int8_t* values) {
  float factor = scale != 0 ? 1 / scale : 0;
  for (int64_t i = 0; i < count; i += kLanes) {
    F32 v = limited(rounded(load(x + i) * factor), low, high);
    for (int lane = 0; lane < kLanes; ++lane) {
      values[i + lane] = static_cast<int8_t>(static_cast<int>(v[lane]) + shift);
    }
  }
}

float squared_error(const float* x, int64_t count, float scale) {
  F32 errors = {};
  float factor = 1 / scale;
  for (int64_t i = 0; i < count; i += kLanes) {
    F32 v = load(x + i);
    F32 error = limited(rounded(v * factor), -8, 7) * scale - v;
    errors += error * error;
  }
  return sum(errors);
}

float best_scale(const float* x, int64_t count) {
  float most = largest_magnitude(x, count), best = most / 8, least = INFINITY;
  if (!(most > 1e-30f) || most == INFINITY) return 0;
  for (int i = 0; i < 2 * kFactors; ++i) {
    float factor = kFirstFactor + static_cast<float>(i / 2) * kFactorStep;
    float scale = most / 8 * factor * (i % 2 == 0 ? 1.0f : -1.0f);
    float error = squared_error(x, count, scale);
    if (error < least) {
      least = error;
      best = scale;
    }
  }
  return best;
}

// row [width] -> values [width] and a scale per group
void quantize_row(const float* row, int64_t width, WeightType type, int64_t group, int8_t* values,
                  float* scales) {
  for (int64_t first = 0; first < width; first += group, ++scales) {
    if (!finite(row + first, group)) {  // what is multiplied with it is not a number either
      *scales = NAN;
      std::fill_n(values + first, group, static_cast<int8_t>(0));
    } else if (type == WeightType::int8) {
      *scales = largest_magnitude(row + first, group) / 127;
      put_group(row + first, group, *scales, -127, 127, 0, values + first);
    } else {
      *scales = best_scale(row + first, group);
      put_group(row + first, group, *scales, -8, 7, 8, values + first);
    }
  }
}

// ---- tile order ---------------------------------------------------------------------------------

// Rows of a tile pair: lines [16][width] -> every second tile from `tiles` on.
void pack_int8(const int8_t* lines, int64_t width, uint8_t* tiles) {
  for (int64_t i = 0; i < width; i += 4) {
    uint8_t* row = tiles + i / 64 * 2 * kTileBytes + i % 64 * kColumns;
    for (int64_t column = 0; column < kColumns; ++column) {
      std::memcpy(row + column * 4, lines + column * width + i, 4);
    }
  }
}

void pack_int4(const int8_t* lines, int64_t width, uint8_t* tiles) {
  for (int64_t i = 0; i < width; ++i) {
    if (i % 128 >= 64) continue;  // the other half of a byte
    uint8_t* bytes = tiles + i / 128 * 2 * kTileBytes + i % 128 / 4 * 64 + i % 4;
    for (int64_t column = 0; column < kColumns; ++column) {
      const int8_t* line = lines + column * width + i;
      bytes[column * 4] = static_cast<uint8_t>(line[0] | line[64] << 4);
    }
  }
}

// What a worker fills for 16 columns.
struct Block {
  float* row;      // [width]
  int8_t* values;  // [16][width]
  float* scales;   // [16][groups]
  uint8_t* zeros;  // [16][groups]
};

class Packing {
 public:
  Packing(Linear& linear, PackedInts& packed, WeightType type, int64_t out, int64_t in,
          int64_t group, bool zeros)
      : linear_(linear), packed_(packed) {
    if (in > kMostInputsInt) {
      throw std::invalid_argument("int8 and int4 weights take at most 131072 inputs");
    }
    int64_t width = padded(in, 128), columns = padded(out, 32);
    linear.type = type;
    linear.in = in;
    linear.out = out;
    linear.in_padded = width;
    linear.out_padded = columns;
    linear.group = group == 0 ? width : group;
    groups_ = width / linear.group;
    packed.data = Buffer(width * columns / (type == WeightType::int4 ? 2 : 1));
    packed.scales = Buffer(columns * groups_ * sizeof(float));
    if (zeros) packed.zeros = Buffer(columns * groups_);
    linear.data = packed.data.data();
    linear.scales = static_cast<float*>(packed.scales.data());
    linear.zeros = zeros ? static_cast<uint8_t*>(packed.zeros.data()) : nullptr;
  }

  // fill(column, row, values, scales, zeros) for every column, 16 of them at a time.
  template <typename Fill>
  void run(Pool& pool, Fill fill) {
    pool.run([&](Worker& w) {
      Block block = scratch(w);
      for (int64_t piece = w.claim(); piece < linear_.out_padded / kColumns; piece = w.claim()) {
        for (int64_t i = 0; i < kColumns; ++i) column(piece * kColumns + i, i, block, fill);
        store(piece, block);
      }
    });
  }

 private:
  Block scratch(Worker& w) const {
    int64_t width = linear_.in_padded;
    auto* memory = static_cast<char*>(w.scratch(width * (4 + kColumns) + groups_ * kColumns * 5));
    Block block;
    block.row = reinterpret_cast<float*>(memory);
    block.scales = block.row + width;
    block.values = reinterpret_cast<int8_t*>(block.scales + kColumns * groups_);
    block.zeros = reinterpret_cast<uint8_t*>(block.values + kColumns * width);
    return block;
  }

  template <typename Fill>
  void column(int64_t column, int64_t i, const Block& block, Fill& fill) const {
    int64_t width = linear_.in_padded;
    int8_t* values = block.values + i * width;
    float* scales = block.scales + i * groups_;
    uint8_t* zeros = block.zeros + i * groups_;
    std::fill_n(zeros, groups_, uint8_t{8});
    if (column < linear_.out) return fill(column, block.row, values, scales, zeros);
    std::fill_n(scales, groups_, 0.0f);
    std::fill_n(values, width, static_cast<int8_t>(linear_.type == WeightType::int4 ? 8 : 0));
  }

  void store(int64_t piece, const Block& block) const {
    bool int4 = linear_.type == WeightType::int4;
    int64_t width = linear_.in_padded, panel_bytes = width * 32 / (int4 ? 2 : 1);
    auto* tiles = static_cast<uint8_t*>(packed_.data.data()) + piece / 2 * panel_bytes +
                  piece % 2 * kTileBytes;
    (int4 ? pack_int4 : pack_int8)(block.values, width, tiles);
    auto* scales = static_cast<float*>(packed_.scales.data()) + piece * groups_ * kColumns;
    auto* zeros = static_cast<uint8_t*>(packed_.zeros.data()) + piece * groups_ * kColumns;
    for (int64_t i = 0; i < groups_ * kColumns; ++i) {
      scales[i] = block.scales[i % kColumns * groups_ + i / kColumns];
      if (linear_.zeros != nullptr) zeros[i] = block.zeros[i % kColumns * groups_ + i / kColumns];
    }
  }

  Linear& linear_;
  PackedInts& packed_;
  int64_t groups_;
};

void unpack_row(const QuantizedMatrix& m, int64_t column, float* row) {
  for (int64_t i = 0; i < m.in; ++i) {
    int64_t at = column * (m.in / m.group) + i / m.group;
    int zero = m.bits == 8 ? 0 : m.zeros != nullptr ? m.zeros[at] : 8;
    row[i] = m.scales[at] * static_cast<float>(m.values[column * m.in + i] - zero);
  }
}

}  // namespace quantizing

using quantizing::Packing;

void quantize(Pool& pool, const void* source, Table::Stored stored, int64_t out, int64_t in,
              WeightType type, int64_t group, Linear& linear, PackedInts& packed) {
  int64_t width = quantizing::padded(in, 128);
  if (group % 64 != 0 || group < 0) throw std::invalid_argument("a group is a multiple of 64");
  if (group >= in || (group != 0 && width % group != 0)) group = 0;
  Packing packing(linear, packed, type, out, in, group, false);
  packing.run(pool, [&](int64_t column, float* row, int8_t* values, float* scales, uint8_t*) {
    quantizing::read_row(source, stored, column * in, in, row);
    std::fill(row + in, row + width, 0.0f);
    quantizing::quantize_row(row, width, type, linear.group, values, scales);
  });
}

bool fits_tiles(const QuantizedMatrix& m) {
  if (m.group == m.in) return true;
  return m.group % 64 == 0 && quantizing::padded(m.in, 128) % m.group == 0;
}

void pack_quantized(Pool& pool, const QuantizedMatrix& m, Linear& linear, PackedInts& packed) {
  int64_t width = quantizing::padded(m.in, 128), groups = m.in / m.group;
  WeightType type = m.bits == 8 ? WeightType::int8 : WeightType::int4;
  bool zeros = m.bits == 4 && m.zeros != nullptr;
  int64_t group = m.group == m.in ? 0 : m.group;
  Packing packing(linear, packed, type, m.out, m.in, group, zeros);
  int64_t all = width / linear.group;
  packing.run(pool, [&](int64_t column, float*, int8_t* values, float* scales, uint8_t* own) {
    std::memcpy(values, m.values + column * m.in, m.in);
    std::memcpy(scales, m.scales + column * groups, groups * sizeof(float));
    std::fill(scales + groups, scales + all, 0.0f);
    if (zeros) std::memcpy(own, m.zeros + column * groups, groups);
    // padding is zero: the value that the zero of its group takes back
    for (int64_t i = m.in; i < width; ++i) {
      values[i] = static_cast<int8_t>(m.bits == 8 ? 0 : own[i / linear.group]);
    }
  });
}

void requantize(Pool& pool, const QuantizedMatrix& m, Linear& linear, PackedInts& packed) {
  int64_t width = quantizing::padded(m.in, 128);
  Packing packing(linear, packed, WeightType::int8, m.out, m.in, 128, false);
  packing.run(pool, [&](int64_t column, float* row, int8_t* values, float* scales, uint8_t*) {
    quantizing::unpack_row(m, column, row);
    std::fill(row + m.in, row + width, 0.0f);
    quantizing::quantize_row(row, width, WeightType::int8, 128, values, scales);
  });
}

}  // namespace kveik
