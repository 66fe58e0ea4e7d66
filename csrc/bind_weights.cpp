// Python's side of weights: Pool, Linear, Table, Vector.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>

#include <optional>

#include "bindings.h"
#include "pack.h"

namespace kveik {

Table::Stored stored_type(const Array& array) {
  if (array.dtype() == nb::dtype<float>()) return Table::Stored::f32;
  if (array.dtype() == nb::dtype<uint16_t>()) return Table::Stored::bf16;
  constexpr nb::dlpack::dtype kHalf{static_cast<uint8_t>(nb::dlpack::dtype_code::Float), 16, 1};
  if (array.dtype() == kHalf) return Table::Stored::f16;
  throw nb::type_error("an array must be float32, float16, or bfloat16 as a uint16 view");
}

void set_bias(PackedLinear& packed, const Array& bias) {
  if (static_cast<int64_t>(bias.size()) != packed.linear.out) {
    throw nb::value_error("a bias has as many numbers as its weight has rows");
  }
  packed.bias = Buffer(packed.linear.out_padded * sizeof(float));
  auto* values = static_cast<float*>(packed.bias.data());
  for (int64_t i = 0; i < packed.linear.out; ++i) {
    values[i] = stored_value(bias.data(), stored_type(bias), i);
  }
  packed.linear.bias = values;
}

namespace {

Vector* new_vector(const Array& array) {
  auto* vector =
      new Vector{static_cast<int64_t>(array.size()), Buffer(array.size() * sizeof(float) + 64)};
  for (int64_t i = 0; i < vector->size; ++i) {
    static_cast<float*>(vector->data.data())[i] = stored_value(array.data(), stored_type(array), i);
  }
  return vector;
}

PackedLinear* pack(Pool& pool, const Array& array, std::optional<Array> bias) {
  if (array.ndim() != 2) throw nb::value_error("a matrix must be [out, in]");
  auto packed = std::make_unique<PackedLinear>();
  auto stored = stored_type(array);
  int64_t out = array.shape(0), in = array.shape(1);
  {
    nb::gil_scoped_release free;
    pack_bf16(pool, array.data(), stored, out, in, packed->linear, packed->data);
  }
  if (bias.has_value()) set_bias(*packed, *bias);
  return packed.release();
}

TableView* view_table(Array array, nb::object source) {
  if (array.ndim() != 2) throw nb::value_error("a table must be [count, width]");
  auto* view = new TableView();
  view->table = {stored_type(array), static_cast<int64_t>(array.shape(0)),
                 static_cast<int64_t>(array.shape(1)), array.data()};
  view->source = std::move(source);
  return view;
}

}  // namespace

void bind_weights(nb::module_& m) {
  nb::class_<Pool>(m, "Pool").def(nb::init<int>()).def_prop_ro("threads", &Pool::threads);
  nb::class_<Vector>(m, "Vector").def_ro("size", &Vector::size);
  nb::class_<TableView>(m, "Table")
      .def_prop_ro("count", [](const TableView& t) { return t.table.count; })
      .def_prop_ro("width", [](const TableView& t) { return t.table.width; });
  nb::class_<PackedLinear>(m, "Linear")
      .def_prop_ro("out_features", [](const PackedLinear& p) { return p.linear.out; })
      .def_prop_ro("in_features", [](const PackedLinear& p) { return p.linear.in; })
      .def_prop_ro("nbytes", [](const PackedLinear& p) {
        return p.data.size() + p.scales.size() + p.zeros.size() + p.bias.size();
      });
  m.def("pack_bf16", &pack, nb::arg("pool"), nb::arg("array"), nb::arg("bias").none());
  m.def("vector", &new_vector);
  m.def("table", &view_table, nb::arg("array"), nb::arg("source"));
}

}  // namespace kveik
