#include "quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "pack.h"
#include "rotation.h"

namespace kveik {
namespace quantizing {

constexpr int64_t kColumns = 16;  // of one tile
constexpr int64_t kTileBytes = 1024;
constexpr int64_t kLanes = 16;  // elements that loops take at a time; groups are multiples of it
constexpr int kFactors = 5;     // scales that are tried for int4
constexpr float kFirstFactor = 0.8f, kFactorStep = 0.05f;
constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding and taking it away rounds

int64_t padded(int64_t count, int64_t grain) { return (count + grain - 1) / grain * grain; }

void read_row(const void* source, Table::Stored stored, int64_t first, int64_t count, float* row) {
  if (stored == Table::Stored::f32) {
    std::memcpy(row, static_cast<const float*>(source) + first, count * sizeof(float));
  } else if (stored == Table::Stored::bf16) {
    const bf16* from = static_cast<const bf16*>(source) + first;
    for (int64_t i = 0; i < count; ++i) {
      uint32_t bits = uint32_t(from[i]) << 16;
      std::memcpy(row + i, &bits, sizeof bits);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) row[i] = stored_value(source, stored, first + i);
  }
}

// ---- one group of one row: x [count]; the loops are plain so that compilers vectorise them ------

// The largest value and minus the smallest, as bits of floats >= 0: infinity and NaN are above all.
struct Extremes {
  int32_t up = 0, down = 0;
};

Extremes extremes(const float* x, int64_t count) {
  int32_t up[kLanes] = {}, down[kLanes] = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      int32_t bits;
      std::memcpy(&bits, x + i + lane, sizeof bits);
      int32_t magnitude = bits & 0x7fffffff, positive = bits < 0 ? 0 : magnitude;
      int32_t negative = bits < 0 ? magnitude : 0;
      up[lane] = positive > up[lane] ? positive : up[lane];
      down[lane] = negative > down[lane] ? negative : down[lane];
    }
  }
  return {*std::max_element(up, up + kLanes), *std::max_element(down, down + kLanes)};
}

float number(int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}

float rounded_within(float x, float low, float high) {
  float whole = (x + kMagic) - kMagic;
  whole = whole < low ? low : whole;
  return whole > high ? high : whole;
}

void put_group(const float* x, int64_t count, float scale, float low, float high, int8_t shift,
               int8_t* values) {
  float factor = scale != 0 ? 1 / scale : 0;
  for (int64_t i = 0; i < count; ++i) {
    auto whole = static_cast<int32_t>(rounded_within(x[i] * factor, low, high));
    values[i] = static_cast<int8_t>(whole + shift);
  }
}

float squared_error(const float* x, int64_t count, float scale) {
  float errors[kLanes] = {}, factor = 1 / scale;
  for (int64_t i = 0; i < count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      float v = x[i + lane], error = rounded_within(v * factor, -8, 7) * scale - v;
      errors[lane] += error * error;
    }
  }
  float total = 0;
  for (float error : errors) total += error;
  return total;
}

// The largest weight is the -8 of a scale of the other sign, or lies beyond.
float int4_scale(const float* x, int64_t count, const Extremes& range) {
  float largest = range.up > range.down ? -number(range.up) : number(range.down);
  float best = largest / 8, least = INFINITY;
  for (int i = 0; i < kFactors; ++i) {
    float scale = largest / 8 * (kFirstFactor + static_cast<float>(i) * kFactorStep);
    float error = squared_error(x, count, scale);
    if (error < least) {
      least = error;
      best = scale;
    }
  }
  return best;
}

void quantize_group(const float* x, int64_t count, WeightType type, int8_t* values, float& scale) {
  constexpr int32_t kInfinity = 0x7f800000;
  Extremes range = extremes(x, count);
  float most = number(std::max(range.up, range.down));
  bool int4 = type == WeightType::int4;
  if (std::max(range.up, range.down) >= kInfinity) {
    scale = NAN;  // what is multiplied with such a weight is not a number either
  } else if (most < 1e-30f) {
    scale = 0;
  } else {
    scale = int4 ? int4_scale(x, count, range) : most / 127;
    return put_group(x, count, scale, int4 ? -8 : -127, int4 ? 7 : 127, int4 ? 8 : 0, values);
  }
  std::fill_n(values, count, static_cast<int8_t>(int4 ? 8 : 0));
}

// row [width] -> values [width] and a scale per group
void quantize_row(const float* row, int64_t width, WeightType type, int64_t group, int8_t* values,
                  float* scales) {
  for (int64_t first = 0; first < width; first += group, ++scales) {
    quantize_group(row + first, group, type, values + first, *scales);
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
  for (int64_t i = 0; i < width; i += i % 128 == 60 ? 68 : 4) {  // 64 inputs of every 128
    uint8_t* row = tiles + i / 128 * 2 * kTileBytes + i % 128 * kColumns;
    for (int64_t column = 0; column < kColumns; ++column) {
      uint32_t low, high;
      std::memcpy(&low, lines + column * width + i, 4);
      std::memcpy(&high, lines + column * width + i + 64, 4);
      uint32_t both = low | high << 4;  // four bytes below 16 each
      std::memcpy(row + column * 4, &both, 4);
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
              WeightType type, int64_t group, bool rotated, Linear& linear, PackedInts& packed) {
  int64_t width = quantizing::padded(in, 128);
  if (group % 64 != 0 || group < 0) throw std::invalid_argument("a group is a multiple of 64");
  if (group >= in || (group != 0 && width % group != 0)) group = 0;
  Packing packing(linear, packed, type, out, in, group, false);
  linear.rotated = rotated;
  packing.run(pool, [&](int64_t column, float* row, int8_t* values, float* scales, uint8_t*) {
    quantizing::read_row(source, stored, column * in, in, row);
    std::fill(row + in, row + width, 0.0f);
    if (rotated) rotate_plain(row, width);
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
  Packing packing(linear, packed, WeightType::int8, m.out, m.in, 64, false);
  packing.run(pool, [&](int64_t column, float* row, int8_t* values, float* scales, uint8_t*) {
    quantizing::unpack_row(m, column, row);
    std::fill(row + m.in, row + width, 0.0f);
    quantizing::quantize_row(row, width, WeightType::int8, 64, values, scales);
  });
}

}  // namespace kveik
