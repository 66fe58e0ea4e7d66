// Python's side of int8 and int4 weights.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <stdexcept>

#include "bindings.h"
#include "quantize.h"

namespace kveik {

namespace {

using Values = nb::ndarray<const int8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Scales = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Zeros = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

PackedLinear* finished(std::unique_ptr<PackedLinear> packed, PackedInts& ints,
                       const std::optional<Array>& bias) {
  packed->data = std::move(ints.data);
  packed->scales = std::move(ints.scales);
  packed->zeros = std::move(ints.zeros);
  if (bias.has_value()) set_bias(*packed, *bias);
  return packed.release();
}

WeightType type_of(int bits) {
  if (bits != 4 && bits != 8) throw nb::value_error("weights have 4 or 8 bits");
  return bits == 4 ? WeightType::int4 : WeightType::int8;
}

PackedLinear* quantized(Pool& pool, const Array& array, std::optional<Array> bias, int bits,
                        int64_t group, bool rotated) {
  if (array.ndim() != 2) throw nb::value_error("a matrix must be [out, in]");
  auto packed = std::make_unique<PackedLinear>();
  auto stored = stored_type(array);
  WeightType type = type_of(bits);
  int64_t out = array.shape(0), in = array.shape(1);
  PackedInts ints;
  {
    nb::gil_scoped_release free;
    quantize(pool, array.data(), stored, out, in, type, group, rotated, packed->linear, ints);
  }
  return finished(std::move(packed), ints, bias);
}

PackedLinear* pack(Pool& pool, Values values, Scales scales, std::optional<Zeros> zeros, int bits,
                   int64_t group, std::optional<Array> bias) {
  type_of(bits);
  QuantizedMatrix m{bits,
                    static_cast<int64_t>(values.shape(0)),
                    static_cast<int64_t>(values.shape(1)),
                    group,
                    values.data(),
                    scales.data(),
                    zeros.has_value() ? zeros->data() : nullptr};
  if (group < 1 || m.in % group != 0) throw nb::value_error("a group divides the inputs");
  size_t groups = m.in / group, out = values.shape(0);
  bool fit = scales.shape(0) == out && scales.shape(1) == groups;
  if (zeros.has_value()) fit = fit && zeros->shape(0) == out && zeros->shape(1) == groups;
  if (!fit) throw nb::value_error("scales and zeros must be [out, in / group]");
  auto packed = std::make_unique<PackedLinear>();
  PackedInts ints;
  {
    nb::gil_scoped_release free;
    (fits_tiles(m) ? pack_quantized : requantize)(pool, m, packed->linear, ints);
  }
  return finished(std::move(packed), ints, bias);
}

}  // namespace

void bind_quantize(nb::module_& m) {
  m.def("quantize", &quantized, nb::arg("pool"), nb::arg("array"), nb::arg("bias").none(),
        nb::arg("bits"), nb::arg("group"), nb::arg("rotated"));
  m.def("pack_quantized", &pack, nb::arg("pool"), nb::arg("values"), nb::arg("scales"),
        nb::arg("zeros").none(), nb::arg("bits"), nb::arg("group"), nb::arg("bias").none());
}

}  // namespace kveik
