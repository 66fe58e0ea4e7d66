// The oracle of the tests: plain loops over single numbers, sums in double precision, one worker.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "attention_scalar.h"
#include "kernels.h"
#include "rotation.h"

namespace kveik {
namespace scalar {

float number(bf16 bits) {
  uint32_t wide = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

float rounded(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return x;
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
  std::memcpy(&x, &bits, 4);
  return x;
}

int64_t width_of(int64_t in) { return (in + 127) / 128 * 128; }

// bf16: the rounded numbers [rows][width]. words, bytes: per row its scale and whole numbers,
// [rows][1 + width].
size_t operand_bytes(RowKind, int64_t rows, int64_t in) {
  return rows * (1 + width_of(in)) * sizeof(float);
}

// x [width] -> its scale, multiplied by `share`, and whole numbers of at most `most_value`
void convert_row_to_whole(const float* x, int64_t width, float most_value, float share,
                          float* out) {
  float most = 0;
  bool finite = true;
  for (int64_t i = 0; i < width; ++i) {
    most = std::fmax(most, std::fabs(x[i]));
    finite = finite && std::isfinite(x[i]);
  }
  out[0] = finite ? most / most_value * share : NAN;
  bool zero = !finite || most < 1e-34f;
  float factor = zero ? 0 : most_value / most;
  for (int64_t i = 0; i < width; ++i) {
    // rounded once, to a whole number: what adding and taking away 1.5 * 2^23 does
    out[1 + i] = zero ? 0 : std::fma(x[i], factor, 12582912.0f) - 12582912.0f;
  }
}

void convert(RowKind kind, const float* x, int64_t x_stride, int64_t rows, int64_t in,
             void* operand, Worker& w) {
  if (w.index != 0) return;
  int64_t width = width_of(in);
  std::vector<float> padded(width);
  for (int64_t row = 0; row < rows; ++row) {
    float* out = static_cast<float*>(operand) + row * (width + 1);
    std::copy_n(x + row * x_stride, in, padded.begin());
    std::fill(padded.begin() + in, padded.end(), 0.0f);
    if (kind == RowKind::bf16) {
      out[0] = 1;
      std::transform(padded.begin(), padded.end(), out + 1, rounded);
    } else if (kind == RowKind::words) {
      convert_row_to_whole(padded.data(), width, 32512, 1, out);
    } else {
      rotate_plain(padded.data(), width);
      float share = 1 / static_cast<float>(rotation_block(width));
      convert_row_to_whole(padded.data(), width, 127, share, out);
    }
  }
}

// weight [column][i], from the packed layout of kernels.h
float weight_at(const Linear& weight, int64_t column, int64_t i) {
  const bf16* panel = static_cast<const bf16*>(weight.data) + column / 32 * 32 * weight.in_padded;
  const bf16* tile = panel + i / 32 * 1024 + column % 32 / 16 * 512;
  return number(tile[i % 32 / 2 * 32 + column % 16 * 2 + i % 2]);
}

int whole_weight_at(const Linear& weight, int64_t column, int64_t i) {
  bool int4 = weight.type == WeightType::int4;
  int64_t inputs = int4 ? 128 : 64;  // of one tile
  const auto* panel = static_cast<const int8_t*>(weight.data) +
                      column / 32 * 32 * weight.in_padded / (int4 ? 2 : 1);
  const int8_t* tile = panel + i / inputs * 2048 + column % 32 / 16 * 1024;
  int byte = tile[i % 64 / 4 * 64 + column % 16 * 4 + i % 4];
  if (!int4) return byte;
  int64_t groups = weight.in_padded / weight.group;
  int64_t at = (column / 16 * groups + i / weight.group) * 16 + column % 16;
  int zero = weight.zeros != nullptr ? weight.zeros[at] : 8;
  return (i % 128 < 64 ? byte & 15 : byte >> 4 & 15) - zero;
}

// The sum that linear_int.h describes, for one row and column.
double int_product(const Linear& weight, const void* operand, int64_t row, int64_t column) {
  const float* x = static_cast<const float*>(operand) + row * (weight.in_padded + 1);
  int64_t groups = weight.in_padded / weight.group;
  float sum = 0;
  for (int64_t group = 0; group < groups; ++group) {
    int64_t hi_sum = 0, lo_sum = 0, end = (group + 1) * weight.group;
    for (int64_t i = group * weight.group; i < end; ++i) {
      int value = static_cast<int>(x[1 + i]), hi = weight.rotated ? 0 : (value + 128) >> 8;
      hi_sum += hi * whole_weight_at(weight, column, i);
      lo_sum += (value - hi * 256) * whole_weight_at(weight, column, i);
    }
    float scale = weight.scales[(column / 16 * groups + group) * 16 + column % 16];
    float value = std::fma(static_cast<float>(hi_sum), 256.0f, static_cast<float>(lo_sum));
    sum = std::fma(value, scale, sum);
  }
  return std::fma(sum, x[0], weight.bias != nullptr ? weight.bias[column] : 0.0f);
}

double product(const Linear& weight, const void* operand, int64_t row, int64_t column) {
  if (weight.type != WeightType::bf16) return int_product(weight, operand, row, column);
  const float* x = static_cast<const float*>(operand) + row * (weight.in_padded + 1) + 1;
  double sum = weight.bias != nullptr ? weight.bias[column] : 0.0;
  for (int64_t i = 0; i < weight.in; ++i) sum += double(x[i]) * weight_at(weight, column, i);
  return sum;
}

void multiply(const Linear* const* weights, float* const* y, const int64_t* y_strides,
              int64_t count, const void* operand, int64_t rows, Worker& w) {
  if (w.index != 0) return;
  for (int64_t which = 0; which < count; ++which) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < weights[which]->out; ++column) {
        double sum = product(*weights[which], operand, row, column);
        y[which][row * y_strides[which] + column] = static_cast<float>(sum);
      }
    }
  }
}

void multiply_gated(const Linear& gate, const Linear& up, const void* operand, int64_t rows,
                    float* y, int64_t y_stride, void*, Worker& w) {
  if (w.index != 0) return;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < gate.out; ++column) {
      double a = product(gate, operand, row, column), b = product(up, operand, row, column);
      y[row * y_stride + column] = static_cast<float>(a / (1 + std::exp(-a)) * b);
    }
  }
}

const float* summed(const float* x, const float* residual, float* sum, int64_t at, int64_t width) {
  x += at;
  if (residual == nullptr) return x;
  residual += at;
  sum += at;
  for (int64_t i = 0; i < width; ++i) sum[i] = residual[i] + x[i];
  return sum;
}

void rms_norm(const float* x, const float* residual, const float* weight, float eps, int64_t rows,
              int64_t width, float* sum, float* y, void*, Worker& w) {
  if (w.index != 0) return;
  for (int64_t at = 0; at < rows * width; at += width) {
    const float* in = summed(x, residual, sum, at, width);
    double squares = 0;
    for (int64_t i = 0; i < width; ++i) squares += double(in[i]) * in[i];
    double factor = 1 / std::sqrt(squares / width + eps);
    for (int64_t i = 0; i < width; ++i) y[at + i] = static_cast<float>(in[i] * factor * weight[i]);
  }
}

void layer_norm(const float* x, const float* residual, const float* weight, const float* bias,
                float eps, int64_t rows, int64_t width, float* sum, float* y, Worker& w) {
  if (w.index != 0) return;
  for (int64_t at = 0; at < rows * width; at += width) {
    const float* in = summed(x, residual, sum, at, width);
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < width; ++i) mean += in[i];
    mean /= width;
    for (int64_t i = 0; i < width; ++i) variance += (in[i] - mean) * (in[i] - mean);
    double factor = 1 / std::sqrt(variance / width + eps);
    for (int64_t i = 0; i < width; ++i) {
      double value = (in[i] - mean) * factor * weight[i];
      y[at + i] = static_cast<float>(bias != nullptr ? value + bias[i] : value);
    }
  }
}

void silu_mul(const float* gate, const float* up, int64_t size, float* y, Worker& w) {
  if (w.index != 0) return;
  for (int64_t i = 0; i < size; ++i) {
    y[i] = static_cast<float>(gate[i] / (1 + std::exp(-double(gate[i]))) * up[i]);
  }
}

void gelu(const float* x, int64_t size, bool tanh_form, float* y, Worker& w) {
  if (w.index != 0) return;
  for (int64_t i = 0; i < size; ++i) {
    double v = x[i], inner = std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v);
    double twice = tanh_form ? 1 + std::tanh(inner) : std::erfc(-v * M_SQRT1_2);
    y[i] = static_cast<float>(0.5 * v * twice);
  }
}

void add(const float* x, const float* y, int64_t size, float* sum, Worker& w) {
  if (w.index != 0) return;
  for (int64_t i = 0; i < size; ++i) sum[i] = x[i] + y[i];
}

void embed(const Table& table, const int64_t* ids, const float* added, int64_t rows, float* y,
           Worker& w) {
  // stored numbers widen exactly, in one way only
  portable_kernels()->embed(table, ids, added, rows, y, w);
}

const Kernels kTable = {
    "scalar", operand_bytes, convert, multiply, multiply_gated, false,     rms_norm, layer_norm,
    silu_mul, gelu,          add,     embed,    rope_write_kv,  attention, nullptr,
};

}  // namespace scalar

const Kernels* scalar_kernels() {
  static const Kernels table = [] {
    Kernels scalar = scalar::kTable;
    scalar.scans = portable_kernels()->scans;
    return scalar;
  }();
  return &table;
}

}  // namespace kveik
