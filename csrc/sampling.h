// Reading rows of logits: penalties, temperature, top-k, top-p, min-p, draw, log-probabilities.
//
// The meaning and the order of the steps are those of kernels/reference_sampling.py, the oracle.
// Logits are float32, everything after them is double. A row is read from its own logits and its
// own SampleRow alone, by one thread.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

namespace kveik {

class Pool;  // pool.h

// ---- passes over one row, one table per level (scans.h) -----------------------------------------

// A row [size] is walked in chunks. A group is one lane of a chunk: every 64th value of it.
constexpr int64_t kScanChunk = 4096;
constexpr int64_t kGroups = 64;
inline int64_t chunks_of(int64_t size) { return (size + kScanChunk - 1) / kScanChunk; }

struct RowScans {
  // maxima[chunks][64] of x[size], -inf where a group is empty; false where x holds a NaN.
  bool (*maxima)(const float* x, int64_t size, float* maxima);
  // The first index of x[size] that holds `value`; size where none does.
  int64_t (*find)(const float* x, int64_t size, float value);
  int64_t (*count_greater)(const float* x, int64_t size, float value);
  // The indices, ascending, of x[size] that are not below `bound` -> ids[size]; how many.
  int64_t (*collect)(const float* x, int64_t size, float bound, int32_t* ids);
  // weights[size] = exp((x[size] - best) / temperature)
  void (*weigh)(const float* x, int64_t size, double best, double temperature, double* weights);
  // sums[chunks] of those weights
  void (*sum_weights)(const float* x, int64_t size, double best, double temperature, double* sums);
  // y[size] = exp(x[size]), to one unit in the last place
  void (*exponentials)(const double* x, int64_t size, double* y);
};

// ---- the rows -----------------------------------------------------------------------------------

// Ids that somebody else holds.
struct Ids {
  const int64_t* data = nullptr;
  int64_t size = 0;
  const int64_t* begin() const { return data; }
  const int64_t* end() const { return data + size; }
};

// SampleRow of kernels/ops.py.
struct SampleRow {
  int64_t row = 0;
  double uniform = 0, temperature = 0;
  int64_t top_k = 0;
  double top_p = 1, min_p = 0;
  double repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  Ids biased;                      // the ids of logit_bias
  const double* biases = nullptr;  // [biased.size]
  Ids banned;
  int64_t logprobs = -1;  // -1: none wanted
  Ids prompt_ids, output_ids;
  int64_t target = -1;
};

// Sampled of kernels/ops.py.
struct Sampled {
  int64_t token = 0;
  double logprob = 0;
  int64_t rank = 0;
  std::vector<std::pair<int64_t, double>> top;
};

// The logits of a row are no numbers, or leave no token to draw.
struct UnreadableRow : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// One Sampled per row, in order, from logits[count][vocabulary]. Throws UnreadableRow for the first
// row that cannot be read, and std::out_of_range for a row or an id that is not there; both name
// the row. The threads of the pool share the rows, if there is one and the work is worth waking
// them; every thread keeps its working memory for the next call.
std::vector<Sampled> sample(const RowScans& scans, Pool* pool, const float* logits, int64_t count,
                            int64_t vocabulary, const std::vector<SampleRow>& rows);

}  // namespace kveik
