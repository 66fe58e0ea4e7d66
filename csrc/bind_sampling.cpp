// Python's side of sampling: SampleRow and Sampled of kernels/ops.py, read and made as plain
// tuples.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <deque>
#include <optional>

#include "bindings.h"
#include "cpu.h"
#include "sampling.h"

namespace kveik {

namespace {

using Logits = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// The fields of a SampleRow, in order.
enum Field {
  kRow,
  kUniform,
  kTemperature,
  kTopK,
  kTopP,
  kMinP,
  kRepetitionPenalty,
  kPresencePenalty,
  kFrequencyPenalty,
  kLogitBias,
  kBanned,
  kLogprobs,
  kPromptIds,
  kOutputIds,
  kTarget,
  kFields,
};

// The lists of ids and biases that the rows of one call point into. A deque of vectors, so that
// they stay where they are.
struct Lists {
  std::deque<std::vector<int64_t>> ids;
  std::deque<std::vector<double>> biases;
};

int64_t integer(nb::handle value) {
  const int64_t number = PyLong_AsLongLong(value.ptr());
  if (number == -1 && PyErr_Occurred() != nullptr) throw nb::python_error();
  return number;
}

double real(nb::handle value) {
  const double number = PyFloat_AsDouble(value.ptr());
  if (number == -1.0 && PyErr_Occurred() != nullptr) throw nb::python_error();
  return number;
}

Ids ids_of(nb::tuple values, Lists& lists) {
  if (values.size() == 0) return {};
  auto& ids = lists.ids.emplace_back();
  ids.reserve(values.size());
  for (nb::handle value : values) ids.push_back(integer(value));
  return {ids.data(), static_cast<int64_t>(ids.size())};
}

void read_bias(nb::tuple pairs, SampleRow& row, Lists& lists) {
  if (pairs.size() == 0) return;
  auto& ids = lists.ids.emplace_back();
  auto& biases = lists.biases.emplace_back();
  for (nb::handle one : pairs) {
    const auto pair = nb::cast<nb::tuple>(one);
    ids.push_back(integer(pair[0]));
    biases.push_back(real(pair[1]));
  }
  row.biased = {ids.data(), static_cast<int64_t>(ids.size())};
  row.biases = biases.data();
}

// The lists of ids are read only where a penalty uses them.
SampleRow row_of(nb::handle given, Lists& lists) {
  const auto fields = nb::cast<nb::tuple>(given);
  if (fields.size() != kFields) throw nb::type_error("a row of sampling is a SampleRow");
  auto field = [&](Field which) { return nb::handle(PyTuple_GET_ITEM(fields.ptr(), which)); };
  SampleRow row;
  row.row = integer(field(kRow));
  row.uniform = real(field(kUniform));
  row.temperature = real(field(kTemperature));
  row.top_k = integer(field(kTopK));
  row.top_p = real(field(kTopP));
  row.min_p = real(field(kMinP));
  row.repetition_penalty = real(field(kRepetitionPenalty));
  row.presence_penalty = real(field(kPresencePenalty));
  row.frequency_penalty = real(field(kFrequencyPenalty));
  row.logprobs = field(kLogprobs).is_none() ? -1 : integer(field(kLogprobs));
  row.target = integer(field(kTarget));
  read_bias(nb::cast<nb::tuple>(field(kLogitBias)), row, lists);
  row.banned = ids_of(nb::cast<nb::tuple>(field(kBanned)), lists);
  const bool repeated = row.repetition_penalty != 1.0;
  const bool counted = row.presence_penalty != 0.0 || row.frequency_penalty != 0.0;
  if (repeated) row.prompt_ids = ids_of(nb::cast<nb::tuple>(field(kPromptIds)), lists);
  if (repeated || counted) row.output_ids = ids_of(nb::cast<nb::tuple>(field(kOutputIds)), lists);
  return row;
}

// tuple.__new__(type, (token_id, logprob, rank, top))
nb::object sampled_of(const Sampled& one, nb::handle type) {
  nb::list top;
  for (const auto& [id, logprob] : one.top) top.append(nb::make_tuple(id, logprob));
  const nb::tuple values = nb::make_tuple(one.token, one.logprob, one.rank, nb::tuple(top));
  const nb::tuple arguments = nb::make_tuple(values);
  PyObject* made =
      PyTuple_Type.tp_new(reinterpret_cast<PyTypeObject*>(type.ptr()), arguments.ptr(), nullptr);
  return nb::steal(made);
}

nb::list sample_rows(const Logits& logits, nb::sequence given, nb::type_object type,
                     std::optional<std::string> level, Pool* pool) {
  static const std::string kBest = levels().front();
  const RowScans& scans = *kernels_of(level.value_or(kBest)).scans;
  Lists lists;
  std::vector<SampleRow> rows;
  for (nb::handle one : given) rows.push_back(row_of(one, lists));
  std::vector<Sampled> sampled;
  try {
    nb::gil_scoped_release free;
    sampled = sample(scans, pool, logits.data(), logits.shape(0), logits.shape(1), rows);
  } catch (const UnreadableRow& error) {
    PyErr_SetString(PyExc_FloatingPointError, error.what());
    throw nb::python_error();
  }
  nb::list results;
  for (const Sampled& one : sampled) results.append(sampled_of(one, type));
  return results;
}

}  // namespace

void bind_sampling(nb::module_& m) {
  m.def("sample_rows", &sample_rows, nb::arg("logits"), nb::arg("rows"), nb::arg("sampled"),
        nb::arg("level").none(), nb::arg("pool").none(),
        "One `sampled` (the class Sampled) per SampleRow, from logits [R, V] float32.");
}

}  // namespace kveik
