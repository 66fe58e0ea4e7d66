// Python's side of packed matrices in files: a matrix is its sizes and up to four parts of bytes.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "packed_file.h"

namespace kveik {

namespace {

// type, in, out, group, whether rotated, whether there are zeros, whether there is a bias
using Sizes = std::tuple<int, int64_t, int64_t, int64_t, bool, bool, bool>;
using Bytes = nb::ndarray<nb::numpy, const uint8_t, nb::ndim<1>>;

int64_t padded(int64_t count, int64_t grain) { return (count + grain - 1) / grain * grain; }

PackedLinear* empty(const Sizes& sizes) {
  auto [type, in, out, group, rotated, zeros, bias] = sizes;
  constexpr int64_t kMost = int64_t{1} << 31;
  if (type < 0 || type > 2 || in < 1 || in > kMost || out < 1 || out > kMost) {
    throw nb::value_error("these are no sizes of a packed matrix");
  }
  auto packed = std::make_unique<PackedLinear>();
  Linear& linear = packed->linear;
  linear.type = static_cast<WeightType>(type);
  linear.in = in;
  linear.out = out;
  linear.in_padded = padded(in, 128);
  linear.out_padded = padded(out, 32);
  linear.group = group;
  linear.rotated = rotated;
  if (group < 64 || linear.in_padded % group != 0) {
    throw nb::value_error("these are no sizes of a packed matrix");
  }
  return packed.release();
}

// Bytes of data, scales, zeros and bias; 0 where there is none.
std::vector<size_t> part_sizes(const Sizes& sizes, const Linear& linear) {
  auto [type, in, out, group, rotated, zeros, bias] = sizes;
  size_t values = linear.in_padded * linear.out_padded;
  size_t groups = linear.out_padded * (linear.in_padded / linear.group);
  bool plain = linear.type == WeightType::bf16;
  size_t data = plain ? values * 2 : linear.type == WeightType::int8 ? values : values / 2;
  return {data, plain ? 0 : groups * sizeof(float), zeros ? groups : 0,
          bias ? linear.out_padded * sizeof(float) : 0};
}

// The parts are views: they keep `self` alive.
std::pair<Sizes, std::vector<Bytes>> parts(nb::handle self) {
  auto& packed = nb::cast<PackedLinear&>(self);
  const Linear& l = packed.linear;
  Sizes sizes{static_cast<int>(l.type), l.in, l.out, l.group, l.rotated, l.zeros != nullptr,
              l.bias != nullptr};
  const Buffer* buffers[4] = {&packed.data, &packed.scales, &packed.zeros, &packed.bias};
  std::vector<Bytes> views;
  std::vector<size_t> bytes = part_sizes(sizes, l);
  for (int i = 0; i < 4; ++i) {
    if (bytes[i] == 0) continue;
    views.emplace_back(static_cast<const uint8_t*>(buffers[i]->data()),
                       std::initializer_list<size_t>{bytes[i]}, self);
  }
  return {sizes, std::move(views)};
}

std::pair<nb::object, std::vector<uint64_t>> read(Pool& pool, int file, const Sizes& sizes,
                                                  const std::vector<int64_t>& offsets) {
  std::unique_ptr<PackedLinear> packed(empty(sizes));
  std::vector<size_t> bytes = part_sizes(sizes, packed->linear);
  Buffer* buffers[4] = {&packed->data, &packed->scales, &packed->zeros, &packed->bias};
  std::vector<uint64_t> sums;
  {
    nb::gil_scoped_release free;
    size_t next = 0;
    for (int i = 0; i < 4; ++i) {
      if (bytes[i] == 0) continue;
      if (next == offsets.size()) throw std::runtime_error("a part of a packed matrix is missing");
      *buffers[i] = Buffer::of_file(file, offsets[next++], bytes[i]);
      sums.push_back(checksum(pool, buffers[i]->data(), bytes[i]));
    }
  }
  Linear& linear = packed->linear;
  linear.data = packed->data.data();
  linear.scales = static_cast<const float*>(packed->scales.data());
  linear.zeros = static_cast<const uint8_t*>(packed->zeros.data());
  linear.bias = static_cast<const float*>(packed->bias.data());
  return {nb::cast(packed.release(), nb::rv_policy::take_ownership), std::move(sums)};
}

uint64_t sum_of(Pool& pool, Bytes bytes) {
  nb::gil_scoped_release free;
  return checksum(pool, bytes.data(), bytes.size());
}

}  // namespace

void bind_packed(nb::module_& m) {
  m.def("packed_parts", &parts, nb::arg("linear"));
  m.def("read_packed", &read, nb::arg("pool"), nb::arg("file"), nb::arg("sizes"),
        nb::arg("offsets"));
  m.def("checksum", &sum_of, nb::arg("pool"), nb::arg("bytes"));
}

}  // namespace kveik
