// Python's side of programs: kernels/native.py records ops, `run` replays them.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bind_arena.h"
#include "bindings.h"
#include "cpu.h"
#include "program.h"

namespace kveik {

namespace {

using Ids = nb::ndarray<const int64_t, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// slots, key_positions, spans, segments, blocks, windows, block_size
using GroupArrays = std::tuple<Ids, Ids, Ids, Ids, Ids, Ids, int64_t>;

// A Program that keeps alive what its ops point to.
struct Recorder {
  Program program;
  std::vector<nb::object> kept;
  int inputs = 0;

  Recorder(std::shared_ptr<Pool> pool, const std::string& level)
      : program(std::move(pool), kernels_of(level)) {}

  bool per_logit(int number) const { return program.value(number).logit_rows; }
  int64_t width(int number) const { return program.value(number).width; }

  int one(OpKind kind, int x, int y, int64_t width_out) {
    Op op{kind};
    op.in[0] = x;
    op.in[1] = y;
    op.out = {program.add_value(width_out, per_logit(x))};
    int out = op.out[0];
    program.add_op(std::move(op));
    return out;
  }
};

void want(bool condition, const char* message) {
  if (!condition) throw nb::value_error(message);
}

int input(Recorder& r, int64_t width) { return r.program.add_input(width, r.inputs++); }

int embed(Recorder& r, nb::object table, int added, bool by_position) {
  const Table& rows = nb::cast<TableView&>(table).table;
  Op op{OpKind::embed};
  op.in[0] = added;
  op.table = &rows;
  op.flag = by_position;
  op.out = {r.program.add_value(rows.width, false)};
  want(added < 0 || r.width(added) == rows.width, "rows and table differ in width");
  r.kept.push_back(std::move(table));
  int out = op.out[0];
  r.program.add_op(std::move(op));
  return out;
}

int linear(Recorder& r, int x, nb::object weight) {
  const Linear& packed = nb::cast<PackedLinear&>(weight).linear;
  if (r.width(x) != packed.in) {
    throw nb::value_error(("rows of " + std::to_string(r.width(x)) + " meet a weight that takes " +
                           std::to_string(packed.in))
                              .c_str());
  }
  Op op{OpKind::linear};
  op.in[0] = x;
  op.weights = {&packed};
  op.out = {r.program.add_value(packed.out, r.per_logit(x))};
  r.kept.push_back(std::move(weight));
  int out = op.out[0];
  r.program.add_op(std::move(op));
  return out;
}

const float* vector_of(Recorder& r, nb::object vector, int64_t size) {
  auto& own = nb::cast<Vector&>(vector);
  want(own.size == size, "a norm's weight does not have the width of its rows");
  r.kept.push_back(vector);
  return static_cast<const float*>(own.data.data());
}

std::pair<int, int> norm(Recorder& r, int x, nb::object weight, nb::object bias, float eps,
                         int residual, bool layer) {
  Op op{layer ? OpKind::layer_norm : OpKind::rms_norm};
  op.in[0] = x;
  op.in[1] = residual;
  op.scale = vector_of(r, weight, r.width(x));
  if (!bias.is_none()) op.shift = vector_of(r, bias, r.width(x));
  op.eps = eps;
  op.out = {r.program.add_value(r.width(x), r.per_logit(x))};
  int sum = x;
  if (residual >= 0) {
    sum = r.program.add_value(r.width(x), r.per_logit(x));
    op.out.push_back(sum);
  }
  int out = op.out[0];
  r.program.add_op(std::move(op));
  return {out, sum};
}

int qk_norm(Recorder& r, int x, nb::object weight, int64_t heads, float eps) {
  Op op{OpKind::qk_norm};
  op.in[0] = x;
  op.scale = vector_of(r, weight, r.width(x) / heads);
  op.eps = eps;
  op.heads = heads;
  op.out = {r.program.add_value(r.width(x), r.per_logit(x))};
  int out = op.out[0];
  r.program.add_op(std::move(op));
  return out;
}

int silu_mul(Recorder& r, int gate, int up) {
  return r.one(OpKind::silu_mul, gate, up, r.width(gate));
}

int add(Recorder& r, int x, int y) { return r.one(OpKind::add, x, y, r.width(x)); }

int gelu(Recorder& r, int x, bool tanh_form) {
  Op op{OpKind::gelu};
  op.in[0] = x;
  op.flag = tanh_form;
  op.out = {r.program.add_value(r.width(x), r.per_logit(x))};
  int out = op.out[0];
  r.program.add_op(std::move(op));
  return out;
}

int take_rows(Recorder& r, int x) {
  Op op{OpKind::take_rows};
  op.in[0] = x;
  op.out = {r.program.add_value(r.width(x), true)};
  int out = op.out[0];
  r.program.add_op(std::move(op));
  return out;
}

// heads, kv_heads, head_dim, scale, inverse frequencies, magnitude
using SpecFields = std::tuple<int64_t, int64_t, int64_t, float, std::vector<double>, float>;

int spec_of(Recorder& r, const SpecFields& fields) {
  const auto& [heads, kv_heads, head_dim, scale, frequencies, magnitude] = fields;
  want(kv_heads > 0 && head_dim > 0 && heads > 0 && heads % kv_heads == 0,
       "heads come in groups of equal size, one for each KV head");
  want(2 * static_cast<int64_t>(frequencies.size()) <= head_dim,
       "a head has two numbers for each frequency");
  AttentionSpec spec{heads, kv_heads, head_dim, scale, {0, nullptr, magnitude}};
  return r.program.add_spec(spec, frequencies);
}

void rope_write_kv(Recorder& r, int k, int v, int group, int layer, const SpecFields& fields) {
  Op op{OpKind::rope_write_kv};
  op.in[0] = k;
  op.in[1] = v;
  op.group = group;
  op.layer = layer;
  op.spec = spec_of(r, fields);
  int64_t width = std::get<1>(fields) * std::get<2>(fields);
  want(r.width(k) == width && r.width(v) == width, "keys and values differ from the KV heads");
  r.program.add_op(std::move(op));
}

int attention(Recorder& r, int q, int group, int layer, const SpecFields& fields) {
  Op op{OpKind::attention};
  op.in[0] = q;
  op.group = group;
  op.layer = layer;
  op.spec = spec_of(r, fields);
  want(r.width(q) == std::get<0>(fields) * std::get<2>(fields), "queries differ from the heads");
  op.out = {r.program.add_value(r.width(q), false)};
  int out = op.out[0];
  r.program.add_op(std::move(op));
  return out;
}

GroupBatch group_batch(const GroupArrays& arrays) {
  const auto& [slots, key_positions, spans, segments, blocks, windows, block_size] = arrays;
  auto size = [](const Ids& ids) { return static_cast<int64_t>(ids.size()); };
  want(size(key_positions) == size(slots), "slots and key_positions differ in length");
  want(size(spans) % 4 == 0 && size(segments) % 3 == 0 && size(windows) % 3 == 0,
       "spans are rows of 4, segments and windows rows of 3");
  return {size(slots),       size(spans) / 4, size(segments) / 3, size(blocks),
          size(windows) / 3, block_size,      slots.data(),       key_positions.data(),
          spans.data(),      segments.data(), blocks.data(),      windows.data()};
}

// The first output as an array over the program's own memory: valid until the next run.
nb::ndarray<nb::numpy, float, nb::ndim<2>> run(nb::handle self, Ids token_ids, Ids positions,
                                               Ids logit_rows,
                                               const std::vector<GroupArrays>& groups,
                                               const std::vector<ArenaMemory*>& arenas,
                                               const std::vector<Rows>& inputs, int64_t rows) {
  Recorder& r = nb::cast<Recorder&>(self);
  StepBatch batch;
  batch.rows = rows;
  batch.logit_rows = static_cast<int64_t>(logit_rows.size());
  batch.token_ids_count = static_cast<int64_t>(token_ids.size());
  batch.token_ids = token_ids.data();
  batch.positions_count = static_cast<int64_t>(positions.size());
  batch.positions = positions.data();
  batch.logit_row_ids = logit_rows.data();
  for (const GroupArrays& group : groups) batch.groups.push_back(group_batch(group));
  for (const ArenaMemory* arena : arenas) batch.arenas.push_back(arena_of(*arena));
  for (const Rows& x : inputs) {
    batch.inputs.push_back({x.data(), int64_t(x.shape(0)), int64_t(x.shape(1))});
  }
  {
    nb::gil_scoped_release free;
    r.program.run(batch);
  }
  size_t shape[2] = {static_cast<size_t>(r.program.rows_of(0, batch)),
                     static_cast<size_t>(r.program.output_width(0))};
  return {const_cast<float*>(r.program.output(0)), 2, shape, self};
}

}  // namespace

void bind_program(nb::module_& m) {
  nb::class_<Recorder>(m, "Program")
      .def(nb::init<std::shared_ptr<Pool>, const std::string&>())
      .def("input", &input)
      .def("embed", &embed)
      .def("linear", &linear)
      .def("norm", &norm, nb::arg("x"), nb::arg("weight"), nb::arg("bias").none(), nb::arg("eps"),
           nb::arg("residual"), nb::arg("layer"))
      .def("qk_norm", &qk_norm)
      .def("silu_mul", &silu_mul)
      .def("add", &add)
      .def("gelu", &gelu)
      .def("take_rows", &take_rows)
      .def("rope_write_kv", &rope_write_kv)
      .def("attention", &attention)
      .def("finish", [](Recorder& r, std::vector<int> outputs) { r.program.finish(outputs); })
      .def("run",
           [](nb::object self, Ids token_ids, Ids positions, Ids logit_rows,
              const std::vector<GroupArrays>& groups, const std::vector<ArenaMemory*>& arenas,
              const std::vector<Rows>& inputs, int64_t rows) {
             return run(self, token_ids, positions, logit_rows, groups, arenas, inputs, rows);
           });
}

}  // namespace kveik
