// The table of one level. A level's file defines KVEIK_LEVEL (and what it has) and
// includes this.
#pragma once

#include "attention.h"
#include "kernels.h"
#include "linear.h"
#include "linear_int.h"
#include "rows.h"
#include "scans.h"
#include "simd.h"

#define KVEIK_TEXT_(name) #name
#define KVEIK_TEXT(name) KVEIK_TEXT_(name)

namespace kveik {
namespace KVEIK_LEVEL {

inline size_t operand_bytes(RowKind kind, int64_t rows, int64_t in) {
  if (kind == RowKind::bf16) return operand_bytes_bf16(rows, in);
  return operand_bytes_int(kind, rows, in);
}

inline void convert(RowKind kind, const float* x, int64_t x_stride, int64_t rows, int64_t in,
                    void* operand, Worker& w) {
  if (kind == RowKind::bf16) return convert_bf16(x, x_stride, rows, in, operand, w);
  convert_int(kind, x, x_stride, rows, in, operand, w);
}

inline void multiply(const Linear* const* weights, float* const* y, const int64_t* y_strides,
                     int64_t count, const void* operand, int64_t rows, Worker& w) {
  if (weights[0]->type != WeightType::bf16) {
    return multiply_int(weights, y, y_strides, count, operand, rows, w);
  }
  multiply_bf16(weights, y, y_strides, count, operand, rows, w);
}

inline void multiply_gated(const Linear& gate, const Linear& up, const void* operand, int64_t rows,
                           float* y, int64_t y_stride, void* next, Worker& w) {
  if (gate.type != WeightType::bf16) {
    return multiply_gated_int(gate, up, operand, rows, y, y_stride, w);
  }
  multiply_gated_bf16(gate, up, operand, rows, y, y_stride, next, w);
}

inline const Kernels kTable = {
    KVEIK_TEXT(KVEIK_LEVEL),
    operand_bytes,
    convert,
    multiply,
    multiply_gated,
    true,
    rms_norm,
    layer_norm,
    silu_mul,
    gelu,
    add,
    embed,
    rope_write_kv,
    attention,
    &scans::kTable,
};

}  // namespace KVEIK_LEVEL
}  // namespace kveik
