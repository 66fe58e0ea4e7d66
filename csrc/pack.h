// From a matrix as it lies in the file to tile order.
#pragma once

#include "kernels.h"
#include "memory.h"
#include "pool.h"

namespace kveik {

// source: [out][in] in its stored type -> bfloat16 tiles (layout: kernels.h), rounded to nearest
// even where it is wider. Fills type, in, out, in_padded, out_padded and data of `linear`.
void pack_bf16(Pool& pool, const void* source, Table::Stored stored, int64_t out, int64_t in,
               Linear& linear, Buffer& data);

// Element `index` of an array in its stored type, as float32.
float stored_value(const void* source, Table::Stored stored, int64_t index);

}  // namespace kveik
