#include "sampling.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <exception>
#include <limits>
#include <string>

#include "pool.h"

namespace kveik {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();
constexpr int64_t kFew = 64;               // so many candidates are sorted at once
constexpr int64_t kWorthWaking = 1 << 18;  // logits: below, one thread is done before others wake

// A token whose score is not its logit: bias, penalties or a ban changed it.
struct Changed {
  int64_t id;
  double score;
  int64_t count;  // in output_ids
  bool seen;      // in prompt_ids or output_ids
};

// A token that may be drawn or reported, its value (scaled score or log-probability) and its
// weight exp(value).
struct Candidate {
  double value, weight;
  int64_t id;
};

// The order by (-value, id).
bool better(const Candidate& a, const Candidate& b) {
  return a.value != b.value ? a.value > b.value : a.id < b.id;
}

// Working memory of one thread, kept from row to row.
struct Scratch {
  std::vector<float> raw_maxima;  // [chunks][64] of the raw row
  std::vector<float> own;         // [vocabulary] copy of the row, -inf where a token is changed
  std::vector<float> own_maxima;  // [chunks][64] of the copy
  std::vector<float> ranked;      // [chunks][64] maxima, partly sorted
  std::vector<int32_t> places;    // [vocabulary] 1 + index into `changed`; 0: not there
  std::vector<Changed> changed;
  std::vector<int32_t> ids;     // [vocabulary]
  std::vector<double> numbers;  // [chunk or candidates]
  std::vector<double> weights;  // [chunk or candidates]
  std::vector<double> sums;     // [chunks]
  std::vector<Candidate> candidates, order;
};

template <class T>
T* sized(std::vector<T>& values, int64_t size) {
  if (static_cast<int64_t>(values.size()) < size) values.resize(size);
  return values.data();
}

// The scores of a row: `body`, and apart from it the changed tokens (by id), which are -inf there.
struct Scores {
  const float* body;    // [size]
  const float* maxima;  // [chunks][64] of the body
  const Changed* changed;
  int64_t changed_count;
};

// Two rising functions of a score. slack: scores that are further apart have different values.
struct Scaled {
  double best, temperature;
  double operator()(double score) const { return (score - best) / temperature; }
  double slack(double score) const {
    return 1e-12 * std::fabs(score - best) + temperature * DBL_MIN;
  }
};
struct LogProbability {
  double best, log_total;
  double operator()(double score) const { return (score - best) - log_total; }
  double slack(double score) const { return 1e-12 * (std::fabs(score - best) + log_total); }
};

// The largest finite float that is not above `bound`.
float finite_below(double bound) {
  if (!(bound > -FLT_MAX)) return -FLT_MAX;
  if (bound >= FLT_MAX) return FLT_MAX;
  float value = static_cast<float>(bound);
  return value > bound ? std::nextafter(value, -FLT_MAX) : value;
}

// One row of logits read by one SampleRow.
class Reader {
 public:
  Reader(const RowScans& scans, Scratch& scratch, const float* raw, int64_t size,
         const SampleRow& row)
      : scans_(scans), scratch_(scratch), raw_(raw), size_(size), row_(row) {}

  Sampled read();

 private:
  int64_t groups() const { return chunks_of(size_) * kGroups; }
  [[noreturn]] void fail(const char* reason) const;
  int64_t checked(int64_t id, const char* field) const;

  Sampled report(int64_t token, int64_t alternatives);
  int64_t draw();

  Scores raw_scores() const { return {raw_, scratch_.raw_maxima.data(), nullptr, 0}; }
  Scores adjusted();
  Changed& touch(int64_t id, const char* field);
  void gather_changed(bool repeated, bool counted);

  Candidate best_of(const Scores& scores) const;
  double total_weight(const Scores& scores, const Scaled& scaled);
  int64_t draw_of_all(const Scores& scores, const Scaled& scaled);
  int64_t draw_in_chunk(const Scores& scores, const Scaled& scaled, int64_t begin, double reached,
                        double aim);

  template <class Value>
  void collect(const Scores& scores, const Value& value, float bound, double least);
  template <class Value>
  void collect_best(const Scores& scores, const Value& value, int64_t count);
  void collect_above(const Scores& scores, const Scaled& scaled, double least);
  void drop_behind(const Candidate& last);
  void weigh_candidates();
  void keep(const Scores& scores, const Scaled& scaled);
  void keep_nucleus(double bound);

  const RowScans& scans_;
  Scratch& scratch_;
  const float* raw_;  // [size]
  int64_t size_;
  const SampleRow& row_;
  double best_logit_ = 0;
};

void Reader::fail(const char* reason) const {
  throw UnreadableRow("row " + std::to_string(row_.row) + ": " + reason);
}

int64_t Reader::checked(int64_t id, const char* field) const {
  if (id >= 0 && id < size_) return id;
  throw std::out_of_range("row " + std::to_string(row_.row) + ": " + field + " names token " +
                          std::to_string(id) + ", the vocabulary is 0.." +
                          std::to_string(size_ - 1));
}

Sampled Reader::read() {
  float* maxima = sized(scratch_.raw_maxima, groups());
  const bool numbers = scans_.maxima(raw_, size_, maxima);
  best_logit_ = *std::max_element(maxima, maxima + groups());
  if (!numbers || !std::isfinite(best_logit_)) fail("the logits are not finite numbers");
  if (row_.target >= 0) {
    return report(checked(row_.target, "target"), std::max<int64_t>(row_.logprobs, 0));
  }
  const int64_t token = draw();
  if (row_.logprobs < 0) return {token, 0.0, 0, {}};
  return report(token, row_.logprobs);
}

// ---- log-probabilities ----

// Log-probability and rank (1: the most probable) of `token`, and the best alternatives.
Sampled Reader::report(int64_t token, int64_t alternatives) {
  const Scores scores = raw_scores();
  const LogProbability value{best_logit_, std::log(total_weight(scores, {best_logit_, 1.0}))};
  const int64_t rank = 1 + scans_.count_greater(raw_, size_, raw_[token]);
  Sampled sampled{token, value(raw_[token]), rank, {}};
  if (alternatives == 0) return sampled;
  collect_best(scores, value, alternatives);
  auto& best = scratch_.candidates;
  std::sort(best.begin(), best.end(), better);
  for (const Candidate& one : best) sampled.top.emplace_back(one.id, one.value);
  const int64_t wanted = std::min(alternatives, size_);
  for (int64_t id = 0; static_cast<int64_t>(sampled.top.size()) < wanted; ++id) {
    if (raw_[id] < -FLT_MAX) sampled.top.emplace_back(id, kNever);  // those that never happen
  }
  return sampled;
}

// ---- drawing ----

int64_t Reader::draw() {
  const Scores scores = adjusted();
  const Candidate best = best_of(scores);
  if (best.value == kNever) fail("no token may be drawn, all are banned");
  if (row_.temperature == 0.0) return best.id;
  if (!std::isfinite(best.value)) fail("bias or penalties make a score infinite");
  const Scaled scaled{best.value, row_.temperature};
  if (row_.top_k <= 0 && row_.top_p >= 1.0 && row_.min_p <= 0.0) {
    return draw_of_all(scores, scaled);
  }
  keep(scores, scaled);
  const auto& kept = scratch_.candidates;
  if (kept.empty()) fail("no token may be drawn, none is left by top_k, top_p and min_p");
  double sum = 0, reached = 0;
  for (const Candidate& one : kept) sum += one.weight;
  for (const Candidate& one : kept) {
    reached += one.weight;
    if (reached > row_.uniform * sum) return one.id;
  }
  return kept.back().id;
}

// Draws from every token. Chunks are added up first, then the tokens of the one that is hit.
int64_t Reader::draw_of_all(const Scores& scores, const Scaled& scaled) {
  const double aim = row_.uniform * total_weight(scores, scaled);
  double reached = 0;
  for (int64_t chunk = 0; chunk < chunks_of(size_); ++chunk) {
    const double next = reached + scratch_.sums[chunk];
    if (next > aim) return draw_in_chunk(scores, scaled, chunk * kScanChunk, reached, aim);
    reached = next;
  }
  // the aim was rounded up to the total: the last token that has a finite scaled score
  collect_above(scores, scaled, kNever);
  return scratch_.candidates.back().id;
}

int64_t Reader::draw_in_chunk(const Scores& scores, const Scaled& scaled, int64_t begin,
                              double reached, double aim) {
  const int64_t size = std::min(kScanChunk, size_ - begin);
  double* weights = sized(scratch_.weights, size);
  scans_.weigh(scores.body + begin, size, scaled.best, scaled.temperature, weights);
  for (int64_t i = 0; i < scores.changed_count; ++i) {
    const Changed& one = scores.changed[i];
    if (one.id < begin || one.id >= begin + size) continue;
    const double value = scaled(one.score);
    scans_.exponentials(&value, 1, &weights[one.id - begin]);
  }
  int64_t last = 0;
  for (int64_t i = 0; i < size; ++i) {
    reached += weights[i];
    if (reached > aim) return begin + i;
    if (weights[i] > 0) last = i;
  }
  return begin + last;  // the sum of the chunk was rounded up
}

// ---- bias, penalties and bans ----

// The scores that tokens are drawn by; the raw row itself when nothing changes it.
Scores Reader::adjusted() {
  const bool repeated = row_.repetition_penalty != 1.0;
  const bool counted = row_.presence_penalty != 0.0 || row_.frequency_penalty != 0.0;
  if (!repeated && !counted && row_.biased.size == 0 && row_.banned.size == 0) {
    return raw_scores();
  }
  gather_changed(repeated, counted);
  const auto& changed = scratch_.changed;
  if (changed.empty()) return raw_scores();
  float* own = sized(scratch_.own, size_);
  std::copy(raw_, raw_ + size_, own);
  for (const Changed& one : changed) own[one.id] = -std::numeric_limits<float>::infinity();
  float* maxima = sized(scratch_.own_maxima, groups());
  scans_.maxima(own, size_, maxima);
  return {own, maxima, changed.data(), static_cast<int64_t>(changed.size())};
}

Changed& Reader::touch(int64_t id, const char* field) {
  int32_t& place = scratch_.places[checked(id, field)];
  if (place == 0) {
    scratch_.changed.push_back({id, raw_[id], 0, false});
    place = static_cast<int32_t>(scratch_.changed.size());
  }
  return scratch_.changed[place - 1];
}

void Reader::gather_changed(bool repeated, bool counted) {
  auto& changed = scratch_.changed;
  int32_t* places = sized(scratch_.places, size_);
  for (const Changed& one : changed) places[one.id] = 0;  // of the row before
  changed.clear();
  for (int64_t i = 0; i < row_.biased.size; ++i) {
    touch(row_.biased.data[i], "logit_bias").score += row_.biases[i];
  }
  if (repeated) {
    for (int64_t id : row_.prompt_ids) touch(id, "prompt_ids").seen = true;
    for (int64_t id : row_.output_ids) touch(id, "output_ids").seen = true;
  }
  if (counted) {
    for (int64_t id : row_.output_ids) touch(id, "output_ids").count += 1;
  }
  for (Changed& one : changed) {
    const double penalty = row_.repetition_penalty;
    if (one.seen) one.score = one.score > 0 ? one.score / penalty : one.score * penalty;
    if (one.count > 0) one.score -= row_.presence_penalty + row_.frequency_penalty * one.count;
  }
  for (int64_t id : row_.banned) touch(id, "banned").score = kNever;
  for (Changed& one : changed) {
    if (std::isnan(one.score)) one.score = kNever;
  }
  std::sort(changed.begin(), changed.end(),
            [](const Changed& a, const Changed& b) { return a.id < b.id; });
}

// ---- whole rows ----

// The first of the tokens with the largest score, and that score.
Candidate Reader::best_of(const Scores& scores) const {
  const float* end = scores.maxima + groups();
  const float largest = *std::max_element(scores.maxima, end);
  Candidate best{largest, 0, size_};
  if (best.value > kNever) {
    const int64_t begin =
        (std::find(scores.maxima, end, largest) - scores.maxima) / kGroups * kScanChunk;
    best.id =
        begin + scans_.find(scores.body + begin, std::min(kScanChunk, size_ - begin), largest);
  }
  for (int64_t i = 0; i < scores.changed_count; ++i) {
    const Candidate one{scores.changed[i].score, 0, scores.changed[i].id};
    if (better(one, best)) best = one;
  }
  return best;
}

// The sum of all weights exp(scaled score); leaves those of the chunks in `sums`.
double Reader::total_weight(const Scores& scores, const Scaled& scaled) {
  double* sums = sized(scratch_.sums, chunks_of(size_));
  scans_.sum_weights(scores.body, size_, scaled.best, scaled.temperature, sums);
  for (int64_t i = 0; i < scores.changed_count; ++i) {
    const double value = scaled(scores.changed[i].score);
    double weight = 0;
    scans_.exponentials(&value, 1, &weight);
    sums[scores.changed[i].id / kScanChunk] += weight;
  }
  double total = 0;
  for (int64_t chunk = 0; chunk < chunks_of(size_); ++chunk) total += sums[chunk];
  return total;
}

// ---- candidates: those of a row that may be meant, by id ----

// Candidates: the tokens of the body from `bound` on and the changed ones, whose value is finite
// and at least `least`.
template <class Value>
void Reader::collect(const Scores& scores, const Value& value, float bound, double least) {
  auto& candidates = scratch_.candidates;
  candidates.clear();
  const int64_t count = scans_.collect(scores.body, size_, bound, sized(scratch_.ids, size_));
  auto add = [&](int64_t id, double score) {
    const double reached = value(score);
    if (reached >= least && reached > kNever) candidates.push_back({reached, 0, id});
  };
  const Changed* changed = scores.changed;
  const Changed* end = changed + scores.changed_count;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t id = scratch_.ids[i];
    for (; changed != end && changed->id < id; ++changed) add(changed->id, changed->score);
    add(id, scores.body[id]);
  }
  for (; changed != end; ++changed) add(changed->id, changed->score);
}

// The `count` candidates with the largest finite values, of equals the first. The count-th largest
// group maximum bounds them from below.
template <class Value>
void Reader::collect_best(const Scores& scores, const Value& value, int64_t count) {
  float bound = -FLT_MAX;
  double least = kNever;
  if (count <= groups()) {
    float* ranked = sized(scratch_.ranked, groups());
    std::copy(scores.maxima, scores.maxima + groups(), ranked);
    std::nth_element(ranked, ranked + count - 1, ranked + groups(), std::greater<float>());
    const double score = ranked[count - 1];
    least = value(score);
    bound = finite_below(score - value.slack(score));
  }
  collect(scores, value, bound, least);
  auto& order = scratch_.order;
  order = scratch_.candidates;
  if (static_cast<int64_t>(order.size()) <= count) return;
  std::nth_element(order.begin(), order.begin() + count - 1, order.end(), better);
  drop_behind(order[count - 1]);
}

// The candidates whose scaled score is finite and not below `least`, and perhaps some just below.
void Reader::collect_above(const Scores& scores, const Scaled& scaled, double least) {
  least -= 1e-6;
  const double score = scaled.best + least * scaled.temperature;
  collect(scores, scaled, finite_below(score - scaled.slack(score) - 1e-12 * std::fabs(score)),
          least);
}

void Reader::drop_behind(const Candidate& last) {
  std::erase_if(scratch_.candidates, [&](const Candidate& one) { return better(last, one); });
}

void Reader::weigh_candidates() {
  auto& candidates = scratch_.candidates;
  const int64_t count = static_cast<int64_t>(candidates.size());
  double* values = sized(scratch_.numbers, count);
  double* weights = sized(scratch_.weights, count);
  for (int64_t i = 0; i < count; ++i) values[i] = candidates[i].value;
  scans_.exponentials(values, count, weights);
  for (int64_t i = 0; i < count; ++i) candidates[i].weight = weights[i];
}

// Candidates: what top_k, top_p and min_p leave. Each filter renormalises what the one before left,
// so only ratios to the best token matter. The first filter that is on bounds the tokens that are
// looked at: for top_p, all tokens lighter than (1 - top_p) / vocabulary of the total together are
// lighter than 1 - top_p of it, so that the nucleus is complete without them.
void Reader::keep(const Scores& scores, const Scaled& scaled) {
  double total = 0;  // of what top_p looks at
  if (row_.top_k > 0) {
    collect_best(scores, scaled, row_.top_k);
    weigh_candidates();
    for (const Candidate& one : scratch_.candidates) total += one.weight;
  } else if (row_.top_p < 1.0) {
    total = total_weight(scores, scaled);
    const double spare = (1.0 - row_.top_p) - 1e-10;  // less what sums may be rounded by
    collect_above(scores, scaled, spare > 0 ? std::log(spare * total / size_) : kNever);
    weigh_candidates();
  } else {
    collect_above(scores, scaled, std::log(row_.min_p));
    weigh_candidates();
  }
  if (row_.top_p < 1.0) keep_nucleus(row_.top_p * total);
  if (row_.min_p > 0.0) {
    std::erase_if(scratch_.candidates,
                  [&](const Candidate& one) { return one.weight < row_.min_p; });
  }
}

// The most probable candidates up to and with the one that reaches `bound`; at least one. Halves
// the range that it lies in, then sorts what is left.
void Reader::keep_nucleus(double bound) {
  auto& order = scratch_.order;
  order = scratch_.candidates;
  double reached = 0;  // by order[0 .. begin), all kept
  auto begin = order.begin(), end = order.end();
  while (end - begin > kFew) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, better);
    double upper = 0;
    for (auto one = begin; one != middle; ++one) upper += one->weight;
    if (reached + upper < bound) {
      reached += upper;
      begin = middle;
    } else {
      end = middle;
    }
  }
  std::sort(begin, end, better);
  auto last = begin;
  for (auto one = begin; one != end && (one == order.begin() || reached < bound); ++one) {
    last = one;
    reached += one->weight;
  }
  drop_behind(*last);
}

}  // namespace

std::vector<Sampled> sample(const RowScans& scans, Pool* pool, const float* logits, int64_t count,
                            int64_t vocabulary, const std::vector<SampleRow>& rows) {
  const int64_t total = static_cast<int64_t>(rows.size());
  std::vector<Sampled> sampled(rows.size());
  std::vector<std::exception_ptr> faults(rows.size());
  auto read = [&](int64_t index) {
    thread_local Scratch scratch;
    const SampleRow& row = rows[index];
    try {
      if (row.row < 0 || row.row >= count) {
        throw std::out_of_range("row " + std::to_string(row.row) + ": there are " +
                                std::to_string(count) + " rows of logits");
      }
      const float* raw = logits + row.row * vocabulary;
      sampled[index] = Reader(scans, scratch, raw, vocabulary, row).read();
    } catch (...) {
      faults[index] = std::current_exception();
    }
  };
  if (pool != nullptr && total > 1 && total * vocabulary >= kWorthWaking) {
    pool->run([&](Worker& worker) {
      for (int64_t index = worker.claim(); index < total; index = worker.claim()) read(index);
    });
  } else {
    for (int64_t index = 0; index < total; ++index) read(index);
  }
  for (const std::exception_ptr& fault : faults) {
    if (fault != nullptr) std::rethrow_exception(fault);
  }
  return sampled;
}

}  // namespace kveik
