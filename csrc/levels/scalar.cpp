// The oracle of the tests: plain loops over single numbers, sums in double precision, one worker.
#include <cmath>
#include <cstring>

#include "kernels.h"

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

size_t operand_bytes(WeightType, int64_t rows, int64_t in) { return rows * in * sizeof(float); }

void convert(WeightType, const float* x, int64_t x_stride, int64_t rows, int64_t in, void* operand,
             Worker& w) {
  if (w.index != 0) return;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < in; ++i) {
      static_cast<float*>(operand)[row * in + i] = rounded(x[row * x_stride + i]);
    }
  }
}

// weight [column][i], from the packed layout of kernels.h
float weight_at(const Linear& weight, int64_t column, int64_t i) {
  const bf16* panel = static_cast<const bf16*>(weight.data) + column / 32 * 32 * weight.in_padded;
  const bf16* tile = panel + i / 32 * 1024 + column % 32 / 16 * 512;
  return number(tile[i % 32 / 2 * 32 + column % 16 * 2 + i % 2]);
}

double product(const Linear& weight, const void* operand, int64_t row, int64_t column) {
  const float* x = static_cast<const float*>(operand) + row * weight.in;
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
              int64_t width, float* sum, float* y, Worker& w) {
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
    "scalar",   operand_bytes, convert, multiply, multiply_gated, false,   rms_norm,
    layer_norm, silu_mul,      gelu,    add,      embed,          nullptr, nullptr,
};

}  // namespace scalar

const Kernels* scalar_kernels() { return &scalar::kTable; }

}  // namespace kveik
