#include "bind_arena.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

namespace kveik {

namespace {

using Move = std::tuple<int64_t, int64_t, int64_t>;  // source, target, slots

KvType type_of(const std::string& dtype) {
  if (dtype == "bfloat16") return KvType::bf16;
  if (dtype == "float32") return KvType::f32;
  throw nb::value_error(("KV dtype '" + dtype + "': use float32 or bfloat16").c_str());
}

// All keys, or all values, as [layers, kv_heads, blocks, numbers of a piece], uint16 where they are
// bfloat16.
nb::object pieces(nb::handle self, void* data, int64_t piece_bytes) {
  const Arena& a = nb::cast<ArenaMemory&>(self).arena;
  auto array = [&](auto value) {
    using T = decltype(value);
    size_t shape[] = {size_t(a.layers), size_t(a.kv_heads), size_t(a.blocks),
                      size_t(piece_bytes) / sizeof(T)};
    auto head = static_cast<int64_t>((a.key_bytes + a.value_bytes) / sizeof(T));
    int64_t block = a.kv_heads * head;
    int64_t strides[] = {a.blocks * block, head, block, 1};
    return nb::cast(nb::ndarray<nb::numpy, T>(data, 4, shape, self, strides));
  };
  return a.type == KvType::bf16 ? array(uint16_t{}) : array(float{});
}

}  // namespace

void bind_arena(nb::module_& m) {
  nb::class_<ArenaMemory>(m, "Arena")
      .def(
          "__init__",
          [](ArenaMemory* self, const std::string& dtype, int64_t layers, int64_t kv_heads,
             int64_t blocks, int64_t block_size, int64_t head_dim) {
            new (self) ArenaMemory(type_of(dtype), layers, kv_heads, blocks, block_size, head_dim);
          },
          nb::arg("dtype"), nb::arg("layers"), nb::arg("kv_heads"), nb::arg("blocks"),
          nb::arg("block_size"), nb::arg("head_dim"))
      .def_prop_ro("keys",
                   [](nb::object self) {
                     const Arena& a = nb::cast<ArenaMemory&>(self).arena;
                     return pieces(self, a.keys(0, 0, 0), a.key_bytes);
                   })
      .def_prop_ro("values",
                   [](nb::object self) {
                     const Arena& a = nb::cast<ArenaMemory&>(self).arena;
                     return pieces(self, a.values(0, 0, 0), a.value_bytes);
                   })
      .def("copy_blocks",
           [](ArenaMemory& self, const std::vector<Move>& moves) {
             for (const auto& [source, target, slots] : moves) {
               copy_block(self.arena, source, target, slots);
             }
           })
      .def("erase_blocks", [](ArenaMemory& self, const std::vector<int64_t>& blocks) {
        for (int64_t block : blocks) erase_block(self.arena, block);
      });
}

}  // namespace kveik
