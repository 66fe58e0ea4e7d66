// What the files of the border share: the Python classes behind opaque weights and arenas.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <memory>

#include "kernels.h"
#include "memory.h"
#include "pool.h"

namespace nb = nanobind;

namespace kveik {

using Array = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;

// A packed matrix and the memory that it lies in.
struct PackedLinear {
  Linear linear{};
  Buffer data, scales, zeros, bias;
};

// Rows of a table; keeps the array whose memory it reads.
struct TableView {
  Table table{};
  nb::object source;
};

// A plain float32 vector.
struct Vector {
  int64_t size = 0;
  Buffer data;
};

struct ArenaMemory;  // bind_arena.cpp

// The stored type of an array: float32, float16, or bfloat16 as a uint16 view.
// Throws nb::type_error for another.
Table::Stored stored_type(const Array& array);

// Copies the bias of a packed matrix; throws nb::value_error for a wrong size.
void set_bias(PackedLinear& packed, const Array& bias);

void bind_weights(nb::module_& m);
void bind_program(nb::module_& m);
void bind_quantize(nb::module_& m);
void bind_sampling(nb::module_& m);
void bind_packed(nb::module_& m);

}  // namespace kveik
