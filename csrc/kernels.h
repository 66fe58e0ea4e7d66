// The table of kernels of one dispatch level, and the records that they are called with.
//
// A level is one translation unit (levels/*.cpp) that includes the kernel families compiled for its
// instruction set. All levels share the layouts below. A kernel is called by every worker of the
// pool with the same arguments; it splits the work itself and may use Worker::barrier between its
// phases. When it returns, the caller puts a barrier. The bits of a row depend on that row's inputs
// alone: never on the number of rows, on their neighbours, on the share of a worker or on the
// number of workers.
//
// bfloat16 values are uint16_t (the upper half of a float32). T rows of this step, R rows whose
// logits are wanted.
#pragma once

#include <cstdint>

#include "worker.h"

namespace kveik {

using bf16 = uint16_t;

// ---- weights ------------------------------------------------------------------------------------

enum class WeightType : int { bf16, int8, int4 };

// How products read the rows of x: as bfloat16, as 16 bits in two bytes, or rotated and as bytes.
enum class RowKind : int { bf16, words, bytes };

// A matrix [out, in] in tile order. A panel is 32 output columns: two tiles of 16 columns side by
// side, step after step along `in`. A tile is 1 KB, the operand B of one tile product:
//
//   bf16  [out_padded / 32][in_padded / 32 ][2 tiles][16 pairs ][16 columns][2]  bfloat16
//   int8  [out_padded / 32][in_padded / 64 ][2 tiles][16 fours ][16 columns][4]  int8
//   int4  [out_padded / 32][in_padded / 128][2 tiles][16 fours ][16 columns][4]  bytes: the low
//         nibbles are an int8 tile of the first 64 inputs, the high nibbles one of the next 64
//
// Padding (in to a multiple of 128, out to one of 32) is zero.
struct Linear {
  WeightType type;
  int64_t in, out;
  int64_t in_padded, out_padded;
  const void* data;
  // int8, int4: weight = scale * (value - zero). scales[out_padded / 16][in_padded / group][16];
  // zeros likewise (int4 only, values 0..15), or null where all are 8. int8 has no zeros.
  int64_t group;  // inputs of one scale: a multiple of 64 that divides in_padded
  const float* scales;
  const uint8_t* zeros;
  const float* bias;  // [out_padded] or null
  // int8, int4: each row was rotated (rotation.h) before it was rounded, and so is x.
  bool rotated = false;

  RowKind rows() const {
    if (type == WeightType::bf16) return RowKind::bf16;
    return rotated ? RowKind::bytes : RowKind::words;
  }
};

// Rows of a table [count, width], as stored in the file. round: values pass through bfloat16.
struct Table {
  enum class Stored : int { bf16, f16, f32 } stored;
  int64_t count, width;
  const void* data;
};

// ---- keys and values ----------------------------------------------------------------------------

enum class KvType : int { bf16, f32 };

// The arena of one KvGroup. width is head_dim padded to a multiple of 32; a slot's padding is zero.
// Memory is [layers][blocks][kv_heads] x (a piece of keys, a piece of values): what belongs to a
// block of a layer lies together, so that blocks that lie anywhere are few pages.
//
//   bf16  keys   [width / 2][block_size][2]   pairs of dimensions
//         values [block_size / 2][width][2]   pairs of slots; half a pair too many if it is odd
//   f32   keys   [width][block_size]
//         values [block_size][width]
struct Arena {
  KvType type;
  int64_t layers, kv_heads, blocks, block_size, head_dim, width;
  int64_t key_bytes, value_bytes;  // of a piece
  char* memory;

  char* keys(int64_t layer, int64_t head, int64_t block) const {
    int64_t piece = (layer * blocks + block) * kv_heads + head;
    return memory + piece * (key_bytes + value_bytes);
  }
  char* values(int64_t layer, int64_t head, int64_t block) const {
    return keys(layer, head, block) + key_bytes;
  }
};

struct Rope {
  int64_t half;                       // rotary_dim / 2; 0: no rotation
  const double* inverse_frequencies;  // [half]
  float magnitude;
};

struct AttentionSpec {
  int64_t heads, kv_heads, head_dim;
  float scale;
  Rope rope;
};

// GroupBatch of kernels/ops.py, flat.
struct GroupBatch {
  int64_t rows, spans_count, segments_count, blocks_count, windows_count, block_size;
  const int64_t* slots;          // [rows]
  const int64_t* key_positions;  // [rows]
  const int64_t* spans;          // [spans_count][4]
  const int64_t* segments;       // [segments_count][3]
  const int64_t* blocks;         // [blocks_count]
  const int64_t* windows;        // [windows_count][3]
};

struct RowScans;       // sampling.h: passes over a row of logits, by one thread
struct AttentionPlan;  // attention_plan.h: what is derived once per step from (GroupBatch, spec)

// ---- the table ----------------------------------------------------------------------------------

struct Kernels {
  const char* name;  // "amx", "avx512_bf16", "avx512", "avx2", "portable", "scalar"

  // Products. `operand` holds the rows of x as the level multiplies them with such weights:
  // convert first (all rows), barrier, then multiply. Several weights of one kind may share it.
  //   operand_bytes(kind, rows, in): size of the operand
  //   convert: x[rows][in] float32, row stride x_stride -> operand
  //   multiply: operand x weight -> y[rows][out] float32, row stride y_stride, bias added
  //   multiply_gated: silu(operand x gate) * (operand x up) -> y; where y is null (gate and the
  //                   weight that takes the result are bfloat16, and the level can) -> next, the
  //                   operand of that weight
  size_t (*operand_bytes)(RowKind kind, int64_t rows, int64_t in);
  void (*convert)(RowKind kind, const float* x, int64_t x_stride, int64_t rows, int64_t in,
                  void* operand, Worker& w);
  void (*multiply)(const Linear* const* weights, float* const* y, const int64_t* y_strides,
                   int64_t count, const void* operand, int64_t rows, Worker& w);
  void (*multiply_gated)(const Linear& gate, const Linear& up, const void* operand, int64_t rows,
                         float* y, int64_t y_stride, void* next, Worker& w);
  bool to_operand;  // multiply_gated and rms_norm can

  // Rows. residual may be null; where it is not, sum = x + residual is normed and stored in
  // `sum` (which may be residual itself). bias null: none. rms_norm with y null: to `operand`, that
  // of a bfloat16 weight.
  void (*rms_norm)(const float* x, const float* residual, const float* weight, float eps,
                   int64_t rows, int64_t width, float* sum, float* y, void* operand, Worker& w);
  void (*layer_norm)(const float* x, const float* residual, const float* weight, const float* bias,
                     float eps, int64_t rows, int64_t width, float* sum, float* y, Worker& w);
  void (*silu_mul)(const float* gate, const float* up, int64_t size, float* y, Worker& w);
  void (*gelu)(const float* x, int64_t size, bool tanh_form, float* y, Worker& w);
  void (*add)(const float* x, const float* y, int64_t size, float* sum, Worker& w);
  void (*embed)(const Table& table, const int64_t* ids, const float* added, int64_t rows, float* y,
                Worker& w);  // y = (added +) table[ids]

  // Attention. k, v: [rows][kv_heads * head_dim]; q, y: [rows][heads * head_dim]; q is unrotated.
  void (*rope_write_kv)(const float* k, const float* v, const Arena& arena, int64_t layer,
                        const AttentionPlan& plan, Worker& w);
  void (*attention)(const float* q, const Arena& arena, int64_t layer, const AttentionPlan& plan,
                    float* y, Worker& w);

  const RowScans* scans;
};

// null where this machine or this build does not have the level
const Kernels* amx_kernels();
const Kernels* avx512_bf16_kernels();
const Kernels* avx512_kernels();
const Kernels* avx2_kernels();
const Kernels* portable_kernels();
const Kernels* scalar_kernels();

}  // namespace kveik
