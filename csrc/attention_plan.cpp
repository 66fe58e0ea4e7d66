#include "attention_plan.h"

#include <algorithm>
#include <cmath>

namespace kveik {

namespace {

constexpr int64_t kItemQueries = 512;  // query rows of one item at most (a token may have more)
constexpr int64_t kFewestQueries = 64;
constexpr int64_t kWantedItems = 16;
constexpr int64_t kFine = 64;  // positions between two coarse turns
constexpr int32_t kNone = -1;

uint64_t mixed(uint64_t x) {  // the finaliser of splitmix64
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

int64_t floor_split(int64_t position) {
  return (position >= 0 ? position : position - kSplit + 1) / kSplit;
}

// Grows a table of open addressing (a power of two, kNone where free) until it is half empty.
// Entries are put in again by `place(entry)`.
template <class Place>
void make_room(std::vector<int32_t>& table, size_t entries, Place place) {
  if (table.size() >= 2 * entries + 2) return;
  table.assign(std::max<size_t>(64, 2 * table.size()), kNone);
  for (size_t entry = 0; entry + 1 < entries; ++entry) place(static_cast<int32_t>(entry));
}

}  // namespace

class AttentionPlanner {
 public:
  AttentionPlanner(AttentionPlan& plan, const GroupBatch& batch) : plan_(plan), batch_(batch) {}

  void plan() {
    clear();
    for (int64_t row = 0; row < batch_.rows; ++row) {
      plan_.slots.push_back(batch_.slots[row]);
      plan_.key_angles.push_back(angle(batch_.key_positions[row]));
    }
    int64_t first_window = 0;
    for (int64_t s = 0; s < batch_.spans_count; ++s) {
      const int64_t* span = batch_.spans + 4 * s;
      add_span({span[0], span[1], span[2], span[3], first_window});
      first_window += span[1] * span[3];
    }
    group();
    std::sort(plan_.items.begin(), plan_.items.end(), [](const auto& a, const auto& b) {
      return a.cost != b.cost ? a.cost > b.cost : a.first_row < b.first_row;
    });
    compute_angles();
  }

 private:
  using Plan = AttentionPlan;

  struct Span {
    int64_t first_row, rows, first_segment, segments, first_window;
  };

  void clear() {
    plan_.slots.clear();
    plan_.key_angles.clear();
    plan_.runs.clear();
    plan_.pieces.clear();
    plan_.seen.clear();
    plan_.visits.clear();
    plan_.items.clear();
    plan_.item_rows.clear();
    plan_.units_.clear();
    plan_.steps_.clear();
    plan_.unit_seen_.clear();
    plan_.positions_.clear();
    std::fill(plan_.angle_table_.begin(), plan_.angle_table_.end(), kNone);
    std::fill(plan_.piece_table_.begin(), plan_.piece_table_.end(), kNone);
    plan_.largest_item = 0;
  }

  // ---- angles -----------------------------------------------------------------------------------

  int32_t angle(int64_t position) {
    if (plan_.spec.rope.half == 0) return 0;
    std::vector<int32_t>& table = plan_.angle_table_;
    auto home = [&](int64_t p) { return mixed(static_cast<uint64_t>(p)) & (table.size() - 1); };
    auto& positions = plan_.positions_;
    make_room(table, positions.size() + 1, [&](int32_t entry) {
      size_t at = home(positions[entry]);
      while (table[at] != kNone) at = (at + 1) & (table.size() - 1);
      table[at] = entry;
    });
    size_t at = home(position);
    while (table[at] != kNone && positions[table[at]] != position) {
      at = (at + 1) & (table.size() - 1);
    }
    if (table[at] == kNone) {
      table[at] = static_cast<int32_t>(positions.size());
      positions.push_back(position);
    }
    return table[at];
  }

  // In double: a position of 4,000,000 is as good as 0. A position is 64 * coarse + fine, its turn
  // the product of two unit numbers, so that a run of positions needs few sines; it depends on the
  // position alone.
  void compute_angles() {
    const Rope& rope = plan_.spec.rope;
    size_t half = static_cast<size_t>(rope.half);
    if (half == 0) return;
    if (plan_.fine_.empty()) {
      for (int64_t fine = 0; fine < kFine; ++fine) append_turns(plan_.fine_, fine);
    }
    plan_.angles.resize(plan_.positions_.size() * 2 * half);
    float* out = plan_.angles.data();
    for (int64_t position : plan_.positions_) {
      int64_t fine = (position % kFine + kFine) % kFine, coarse = position - fine;
      const double *a = coarse_turns(coarse), *b = &plan_.fine_[fine * 2 * half];
      for (size_t i = 0; i < half; ++i) {
        double cosine = a[i] * b[i] - a[half + i] * b[half + i];
        double sine = a[half + i] * b[i] + a[i] * b[half + i];
        out[i] = static_cast<float>(cosine * rope.magnitude);
        out[half + i] = static_cast<float>(sine * rope.magnitude);
      }
      out += 2 * half;
    }
  }

  const double* coarse_turns(int64_t position) {
    for (int i = 0; i < kKnown; ++i) {
      if (!plan_.coarse_[i].empty() && plan_.coarse_positions_[i] == position) {
        return plan_.coarse_[i].data();
      }
    }
    int place = plan_.next_coarse_;
    plan_.next_coarse_ = (place + 1) % kKnown;
    plan_.coarse_positions_[place] = position;
    plan_.coarse_[place].clear();
    append_turns(plan_.coarse_[place], position);
    return plan_.coarse_[place].data();
  }

  void append_turns(std::vector<double>& to, int64_t position) const {
    const Rope& rope = plan_.spec.rope;
    for (auto part :
         {+[](double x) { return std::cos(x); }, +[](double x) { return std::sin(x); }}) {
      for (int64_t i = 0; i < rope.half; ++i) {
        to.push_back(part(static_cast<double>(position) * rope.inverse_frequencies[i]));
      }
    }
  }

  // ---- pieces -----------------------------------------------------------------------------------

  // The piece of `segment` whose slot 0 is the segment's slot `start`; equal ones are one piece.
  int32_t piece(int64_t segment, int64_t start) {
    find_runs(segment, start);
    const auto& fresh = plan_.fresh_;
    uint64_t hash = fresh.size();
    for (const Plan::Run& run : fresh) {
      hash = mixed(hash ^ (static_cast<uint64_t>(run.block) << 32) ^
                   static_cast<uint64_t>(run.offset << 16 | run.slot));
    }
    std::vector<int32_t>& table = plan_.piece_table_;
    make_room(table, plan_.pieces.size() + 1, [&](int32_t entry) {
      size_t at = plan_.pieces[entry].hash & (table.size() - 1);
      while (table[at] != kNone) at = (at + 1) & (table.size() - 1);
      table[at] = entry;
    });
    size_t at = hash & (table.size() - 1);
    while (table[at] != kNone && !same(plan_.pieces[table[at]], hash)) {
      at = (at + 1) & (table.size() - 1);
    }
    if (table[at] == kNone) {
      bool by_tile = plan_.block_size % 16 == 0 && start % 16 == 0;
      table[at] = static_cast<int32_t>(plan_.pieces.size());
      plan_.pieces.push_back({static_cast<int32_t>(plan_.runs.size()),
                              static_cast<int32_t>(fresh.size()), by_tile, hash});
      plan_.runs.insert(plan_.runs.end(), fresh.begin(), fresh.end());
    }
    return table[at];
  }

  void find_runs(int64_t segment, int64_t start) {
    const int64_t* own = batch_.segments + 3 * segment;
    const int64_t* blocks = batch_.blocks + own[0];
    int64_t size = plan_.block_size;
    int64_t at = std::max<int64_t>(start, 0);
    int64_t end = std::min(start + kSplit, own[1] * size);
    plan_.fresh_.clear();
    while (at < end) {
      int64_t offset = at % size, count = std::min(size - offset, end - at);
      plan_.fresh_.push_back({static_cast<int32_t>(blocks[at / size]), static_cast<int32_t>(offset),
                              static_cast<int32_t>(at - start), static_cast<int32_t>(count)});
      at += count;
    }
  }

  bool same(const Plan::Piece& piece, uint64_t hash) const {
    const auto& fresh = plan_.fresh_;
    return piece.hash == hash && piece.runs == static_cast<int32_t>(fresh.size()) &&
           std::equal(fresh.begin(), fresh.end(), plan_.runs.begin() + piece.first_run);
  }

  // ---- units ------------------------------------------------------------------------------------

  const int64_t* window(const Span& span, int64_t row, int64_t segment) const {
    return batch_.windows + 3 * (span.first_window + row * span.segments + segment);
  }

  // Rows of one item: enough of them to use keys often, few enough to have work for everyone.
  int64_t rows_of_item() const {
    int64_t rows = 0;
    for (int64_t s = 0; s < batch_.spans_count; ++s) rows += batch_.spans[4 * s + 1];
    int64_t share = plan_.heads_per_kv_head;
    int64_t queries = rows * share * plan_.spec.kv_heads / kWantedItems;
    queries = std::clamp(queries / 32 * 32, kFewestQueries, kItemQueries);
    return std::max<int64_t>(queries / share, 1);
  }

  void add_span(const Span& span) {
    find_places(span);
    int64_t most = rows_of_item();
    for (int64_t begin = 0; begin < span.rows; begin += most) {
      add_unit(span, begin, std::min(begin + most, span.rows));
    }
  }

  // The pieces that some row of the span sees, from left to right.
  void find_places(const Span& span) {
    plan_.places_.clear();
    for (int64_t g = 0; g < span.segments; ++g) {
      int64_t home = batch_.segments[3 * (span.first_segment + g) + 2];
      int64_t low = INT64_MAX, high = INT64_MIN;
      for (int64_t row = 0; row < span.rows; ++row) {
        const int64_t* w = window(span, row, g);
        if (w[2] < w[1]) continue;
        low = std::min(low, w[1]);
        high = std::max(high, w[2]);
      }
      if (high < low) continue;
      for (int64_t split = floor_split(home + low); split <= floor_split(home + high); ++split) {
        plan_.places_.push_back({g, split * kSplit - home, kNone});
      }
    }
  }

  void add_unit(const Span& span, int64_t begin, int64_t end) {
    Plan::Unit unit{static_cast<int32_t>(span.first_row + begin), static_cast<int32_t>(end - begin),
                    static_cast<int32_t>(plan_.steps_.size()), 0};
    for (Plan::Place& place : plan_.places_) unit.steps += add_step(span, begin, end, place);
    plan_.units_.push_back(unit);
  }

  bool add_step(const Span& span, int64_t begin, int64_t end, Plan::Place& place) {
    Plan::Step step{kNone, INT32_MAX, 0, kSplit, -1, static_cast<int64_t>(plan_.unit_seen_.size())};
    for (int64_t row = begin; row < end; ++row) {
      const int64_t* w = window(span, row, place.segment);
      int64_t first = std::max<int64_t>(w[1] - place.start, 0);
      int64_t last = std::min<int64_t>(w[2] - place.start, kSplit - 1);
      bool sees = first <= last;
      if (!sees && step.end == 0) continue;  // rows before the first one that sees
      if (step.end == 0) step.begin = static_cast<int32_t>(row - begin);
      Plan::Seen seen{0, 1, 0};
      if (sees) {
        seen = {angle(w[0]), static_cast<int16_t>(first), static_cast<int16_t>(last)};
        step.low = std::min(step.low, seen.first);
        step.high = std::max(step.high, seen.last);
        step.end = static_cast<int32_t>(row - begin + 1);
      }
      plan_.unit_seen_.push_back(seen);
    }
    if (step.end == 0) return false;
    plan_.unit_seen_.resize(step.first_seen + step.end - step.begin);
    if (place.piece == kNone) place.piece = piece(span.first_segment + place.segment, place.start);
    step.piece = place.piece;
    plan_.steps_.push_back(step);
    return true;
  }

  // ---- items ------------------------------------------------------------------------------------

  const Plan::Step& step(int32_t unit, int32_t depth) const {
    return plan_.steps_[plan_.units_[unit].first_step + depth];
  }

  // Units whose paths of pieces begin alike come to lie side by side.
  bool comes_before(int32_t a, int32_t b) const {
    const Plan::Unit &left = plan_.units_[a], &right = plan_.units_[b];
    int32_t common = std::min(left.steps, right.steps);
    for (int32_t depth = 0; depth < common; ++depth) {
      int32_t x = step(a, depth).piece, y = step(b, depth).piece;
      if (x != y) return x < y;
    }
    return left.steps != right.steps ? left.steps < right.steps : a < b;
  }

  void group() {
    auto& order = plan_.order_;
    order.resize(plan_.units_.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
    std::sort(order.begin(), order.end(),
              [this](int32_t a, int32_t b) { return comes_before(a, b); });
    int64_t most = rows_of_item();
    for (size_t begin = 0; begin < order.size();) {
      size_t end = begin + 1;
      int64_t rows = plan_.units_[order[begin]].rows;
      while (end < order.size() && together(order[begin], order[end]) &&
             rows + plan_.units_[order[end]].rows <= most) {
        rows += plan_.units_[order[end++]].rows;
      }
      add_item(begin, end, rows);
      begin = end;
    }
  }

  bool together(int32_t a, int32_t b) const {
    if (plan_.units_[a].steps == 0 || plan_.units_[b].steps == 0) return false;
    return step(a, 0).piece == step(b, 0).piece;
  }

  void add_item(size_t begin, size_t end, int64_t rows) {
    Plan::Item item{static_cast<int32_t>(plan_.item_rows.size()), static_cast<int32_t>(rows),
                    static_cast<int32_t>(plan_.visits.size()), 0, 0};
    for (size_t i = begin; i < end; ++i) {
      const Plan::Unit& unit = plan_.units_[order(i)];
      for (int32_t row = 0; row < unit.rows; ++row) plan_.item_rows.push_back(unit.first_row + row);
    }
    plan_.turned_.assign(rows, kNone);
    walk(begin, end, 0, 0);
    item.visits = static_cast<int32_t>(plan_.visits.size()) - item.first_visit;
    for (int32_t v = item.first_visit; v < item.first_visit + item.visits; ++v) {
      const Plan::Visit& visit = plan_.visits[v];
      int64_t queries = (visit.end - visit.begin) * plan_.heads_per_kv_head;
      item.cost += (visit.high - visit.low + 1) * (32 + queries);
    }
    plan_.items.push_back(item);
    plan_.largest_item = std::max(plan_.largest_item, rows);
  }

  int32_t order(size_t at) const { return plan_.order_[at]; }

  // Visits of units begin .. end, whose paths are equal up to `depth`; row 0 of the first one is
  // row `first_row` of the item.
  void walk(size_t begin, size_t end, int32_t depth, int32_t first_row) {
    while (begin < end) {
      if (plan_.units_[order(begin)].steps ==
          depth) {  // it has seen everything: the shortest first
        first_row += plan_.units_[order(begin++)].rows;
        continue;
      }
      int32_t piece = step(order(begin), depth).piece;
      size_t same = begin;
      int32_t rows = 0;
      while (same < end && step(order(same), depth).piece == piece) {
        rows += plan_.units_[order(same++)].rows;
      }
      add_visit(begin, same, depth, first_row);
      if (same == end) {
        ++depth;
        continue;
      }
      walk(begin, same, depth + 1, first_row);
      first_row += rows;
      begin = same;
    }
  }

  void add_visit(size_t begin, size_t end, int32_t depth, int32_t first_row) {
    Plan::Visit visit{step(order(begin), depth).piece,        0, 0, kSplit, -1, false,
                      static_cast<int64_t>(plan_.seen.size())};
    visit.begin = visit.end = first_row + step(order(begin), depth).begin;
    for (size_t i = begin; i < end; ++i) {
      const Plan::Step& own = step(order(i), depth);
      for (; visit.end < first_row + own.begin; ++visit.end) plan_.seen.push_back({0, 1, 0});
      for (int32_t row = 0; row < own.end - own.begin; ++row, ++visit.end) {
        const Plan::Seen& seen = plan_.unit_seen_[own.first_seen + row];
        plan_.seen.push_back(seen);
        if (seen.last < seen.first) continue;
        visit.turn |= plan_.turned_[visit.end] != seen.angle;
        plan_.turned_[visit.end] = seen.angle;
      }
      visit.low = std::min(visit.low, own.low);
      visit.high = std::max(visit.high, own.high);
      first_row += plan_.units_[order(i)].rows;
    }
    plan_.visits.push_back(visit);
  }

  AttentionPlan& plan_;
  const GroupBatch& batch_;
};

AttentionPlan* new_attention_plan() { return new AttentionPlan(); }
void delete_attention_plan(AttentionPlan* plan) { delete plan; }

void plan_attention(AttentionPlan& plan, const GroupBatch& batch, const AttentionSpec& spec) {
  plan.spec = spec;
  plan.block_size = batch.block_size;
  plan.heads_per_kv_head = spec.heads / spec.kv_heads;
  AttentionPlanner(plan, batch).plan();
}

}  // namespace kveik
