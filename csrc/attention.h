// Kernel family: paged attention over segments. This is the loop; its parts are
//
//   attention_planes.h    where keys and values lie; rotary embedding and writing
//   attention_slots.h     the keys and values of one visit
//   attention_softmax.h   scores become weights
//   attention_lanes.h     products in vectors of float32
//   attention_pairs.h     products of pairs of bfloat16
//   attention_tiles.h     products in tiles
//
// A visit (attention_plan.h) brings rows of queries together with the 256 slots of a piece:
//
//   queries   [rows][width]              scaled to base 2, turned to the angle of the segment
//   scores    [16 columns][16 rows][16]  per tile of 16 rows; a column is 16 slots
//   weights   2^(score - m), m the maximum rounded up to an integer, in the place of the scores
//   partial   [16 rows][width]           weights x values of the 256 slots
//   state     (m, sum, values) per row; partial results are added from left to right
//
// Slots that a row does not see get weight 0, whatever their scores are; values of slots that
// nobody sees are zero before they are multiplied. So steps of 32 slots that no row of a tile sees
// can be left out without changing a bit: they would add 0 to sums that are never -0.
//
// What multiplies is a class of static functions, `Products`:
//
//   Element                  of queries, keys and values: float or bf16
//   configure_tiles()        once per worker and call
//   reads_in_place(arena, by_tile)   whether find_keys may leave keys in the arena
//   fetches                  whether score fetches coming_values, and combine coming_keys
//   score(queries, width, rows, slots, scores)
//                            queries x keys for slots first .. end, at most 16 rows
//   combine(scores, width, rows, slots, partial, weigh)
//                            calls weigh(step) for each step first .. end in order, before it
//                            multiplies the weights that this leaves, by the values of the step
#pragma once

#include <cstring>
#include <type_traits>

#include "attention_lanes.h"
#include "attention_plan.h"
#include "attention_planes.h"
#include "attention_slots.h"
#include "attention_softmax.h"
#if KVEIK_AMX
#include "attention_tiles.h"
#elif KVEIK_PAIRS
#include "attention_pairs.h"
#endif
#include "simd.h"

namespace kveik {
namespace KVEIK_LEVEL {

// Memory of one worker for one item of `rows` query rows.
template <class T>
struct Room {
  T* queries;      // [rows + 16][width]
  float* sums;     // [rows][width]: weighted values
  float* tops;     // [rows + 16]: the maximum so far, an integer
  float* totals;   // [rows + 16]: the sum of weights so far
  float* scores;   // [16 columns][16 rows][16]
  float* partial;  // [16][width]
  float* line;     // [width]
  Tile* tile;
  Slots<T>* slots;

  static constexpr size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

  Room(Worker& w, int64_t rows, int64_t width) {
    size_t line = width * sizeof(float), per_row = (rows + kRows) * sizeof(float);
    size_t split = kSplit * width * sizeof(T);
    size_t sizes[] = {(rows + kRows) * width * sizeof(T),
                      rows * line,
                      per_row,
                      per_row,
                      kColumns * kLine * sizeof(float),
                      kRows * line,
                      line,
                      sizeof(Tile),
                      sizeof(Slots<T>),
                      split,
                      split};
    size_t total = 0;
    for (size_t& size : sizes) total += aligned(size);
    char* memory = static_cast<char*>(w.scratch(total));
    size_t which = 0;
    auto next = [&](auto*& pointer) {
      pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(memory);
      memory += aligned(sizes[which++]);
    };
    next(queries);
    next(sums);
    next(tops);
    next(totals);
    next(scores);
    next(partial);
    next(this->line);
    next(tile);
    next(slots);
    next(slots->keys);
    next(slots->values);
  }
};

// The queries of one item and KV head, on their way from left to right.
template <class Products>
struct ItemHead {
  using T = typename Products::Element;
  const AttentionPlan& plan;
  const AttentionPlan::Item& item;
  const Arena& arena;
  const float* q;
  int64_t layer, head;
  Room<T>& room;

  int64_t share() const { return plan.heads_per_kv_head; }
  // Calls visit(query, row of the item, offset in q and y) for query rows first .. first + count:
  // the heads of one row lie side by side.
  template <class Visit>
  void for_queries(int64_t first, int64_t count, Visit visit) const {
    int64_t row = first / share(), head_in_row = first % share();
    for (int64_t query = first; query < first + count; ++query) {
      int64_t at = plan.item_rows[item.first_row + row] * plan.spec.heads + head * share();
      visit(query, row, (at + head_in_row) * plan.spec.head_dim);
      if (++head_in_row == share()) {
        head_in_row = 0;
        ++row;
      }
    }
  }

  void start() {
    int64_t rows = item.rows * share();
    for (int64_t row = 0; row < rows; ++row) {
      room.tops[row] = -kInfinity;
      room.totals[row] = 0;
    }
    std::memset(room.sums, 0, rows * arena.width * sizeof(float));
  }

  void turn(const AttentionPlan::Visit& visit) {
    float factor = plan.spec.scale * 1.44269504f;  // scores in base 2
    int64_t first = visit.begin * share(), count = visit.end * share() - first;
    for_queries(first, count, [&](int64_t query, int64_t row, int64_t offset) {
      const auto& seen = plan.seen[visit.first_seen + row - visit.begin];
      if (seen.last < seen.first) return;
      T* out = room.queries + query * arena.width;
      turn_row(plan, q + offset, factor, seen.angle, arena.width, room.line);
      for (int64_t i = 0; i < arena.width; i += kLanes) store(out + i, load(room.line + i));
    });
  }

  void meet(const AttentionPlan::Visit& visit, const AttentionPlan::Visit& next) {
    if (visit.turn) turn(visit);
    Slots<T>& slots = *room.slots;
    bool in_place = Products::reads_in_place(arena, plan.pieces[visit.piece].by_tile);
    find_keys(plan, visit, arena, layer, head, in_place, slots);
    if constexpr (Products::fetches) {
      slots.fetching = find_coming(plan, visit, arena, layer, head, false, slots.coming_values) &&
                       find_coming(plan, next, arena, layer, head, true, slots.coming_keys);
    }
    int64_t end = visit.end * share();
    bool found = false;
    for (int64_t query = visit.begin * share(); query < end; query += kRows) {
      int64_t rows = end - query < kRows ? end - query : kRows;
      if (!begin(visit, query, static_cast<int>(rows), slots)) continue;
      Products::score(room.queries + query * arena.width, arena.width, static_cast<int>(rows),
                      slots, room.scores);
      if (!found) find_values(plan, visit, arena, layer, head, slots);  // fetched meanwhile
      found = true;
      meet(query, static_cast<int>(rows), slots);
      slots.fetching = false;
    }
  }

  // Up to 16 query rows of the visit, from `query` on: from scores to what is added.
  void meet(int64_t query, int rows, Slots<T>& slots) {
    Tile& tile = *room.tile;
    int first = slots.first / kStep, end = slots.end / kStep;
    for (int step = first; step < end; ++step) {
      bool whole = step * kStep >= tile.from && step * kStep + kStep - 1 <= tile.to;
      if (!whole) hide(tile, step, room.scores);
    }
    find_tops(first, end, room.scores, tile);
    Products::combine(room.scores, arena.width, rows, slots, room.partial,
                      [&](int step) { weigh<T>(step, room.scores, tile); });
    for (int row = 0; row < rows; ++row) tile.total[row] = sum(tile.sums[row]);
    for (int row = 0; slots.broken > 0 && row < rows; ++row) {
      if (sees_broken(tile, row, slots)) tile.total[row] = kNan;
    }
    merge(query);
  }

  // What the rows see; false where that is nothing.
  bool begin(const AttentionPlan::Visit& visit, int64_t query, int rows, Slots<T>& slots) {
    Tile& tile = *room.tile;
    tile.rows = rows;
    tile.from = 0;
    tile.to = kSplit - 1;
    int low = kSplit, high = -1;
    const AttentionPlan::Seen* seen = &plan.seen[visit.first_seen] + query / share() - visit.begin;
    int64_t head_in_row = query % share();
    for (int row = 0; row < kRows; ++row) tile.seen[row] = 0;
    for (int row = 0; row < rows; ++row) {
      int first = seen->first, last = seen->last;
      tile.first[row] = first;
      tile.seen[row] = last - first + 1;
      tile.from = first > tile.from ? first : tile.from;
      tile.to = last < tile.to ? last : tile.to;
      if (last >= first) low = first < low ? first : low;
      if (last >= first) high = last > high ? last : high;
      if (++head_in_row == share()) {
        head_in_row = 0;
        ++seen;
      }
    }
    slots.first = low / kStep * kStep;
    slots.end = (high / kStep + 1) * kStep;
    return high >= 0;
  }

  static bool sees_broken(const Tile& tile, int row, const Slots<T>& slots) {
    for (int i = 0; i < slots.broken; ++i) {
      int slot = slots.broken_slot[i] - tile.first[row];
      if (slot >= 0 && slot < tile.seen[row]) return true;
    }
    return false;
  }

  // Milakov and Gimelshein 2018: two partial results under their common maximum.
  void merge(int64_t query) {
    const Tile& tile = *room.tile;
    I32 seen = load_lanes<int32_t>(tile.seen);
    F32 before = load(room.tops + query), after = load(tile.top);
    F32 common = larger(after, before);
    alignas(64) float old[kRows], now[kRows];
    store(old, power_between(before, common));
    store(now, power_between(after, common));
    F32 total = load(room.totals + query);
    F32 merged = total * load(old) + load(tile.total) * load(now);
    store(room.tops + query, select(seen > 0, common, before));
    store(room.totals + query, select(seen > 0, merged, total));
    for (int row = 0; row < tile.rows; ++row) {
      if (tile.seen[row] == 0) continue;
      float* sums = room.sums + (query + row) * arena.width;
      const float* partial = room.partial + row * arena.width;
      for (int64_t i = 0; i < arena.width; i += kLanes) {
        // what is added is never -0
        store(sums + i, load(sums + i) * old[row] + (load(partial + i) + 0.0f) * now[row]);
      }
    }
  }

  void finish(float* y) {
    for_queries(0, item.rows * share(), [&](int64_t query, int64_t, int64_t offset) {
      float total = room.totals[query], factor = total == 0 ? 0.0f : 1.0f / total;
      const float* sums = room.sums + query * arena.width;
      for (int64_t i = 0; i < plan.spec.head_dim; i += kLanes) {
        F32 value = total == total ? load(sums + i) * factor : all(kNan);
        store(y + offset + i, value, plan.spec.head_dim - i);
      }
    });
  }
};

template <class Products>
inline void attend(const float* q, const Arena& arena, int64_t layer, const AttentionPlan& plan,
                   float* y, Worker& w) {
  int64_t heads = plan.spec.kv_heads, total = static_cast<int64_t>(plan.items.size()) * heads;
  Room<typename Products::Element> room(w, plan.largest_item * plan.heads_per_kv_head, arena.width);
  Products::configure_tiles();
  for (int64_t at = w.claim(); at < total; at = w.claim()) {
    const AttentionPlan::Item& item = plan.items[at / heads];
    ItemHead<Products> own{plan, item, arena, q, layer, at % heads, room};
    own.start();
    for (int32_t v = item.first_visit; v < item.first_visit + item.visits; ++v) {
      bool last = v + 1 == item.first_visit + item.visits;
      own.meet(plan.visits[v], plan.visits[last ? v : v + 1]);
    }
    own.finish(y);
  }
}

inline void attention(const float* q, const Arena& arena, int64_t layer, const AttentionPlan& plan,
                      float* y, Worker& w) {
#if KVEIK_AMX
  if (arena.type == KvType::bf16) return attend<TileProducts>(q, arena, layer, plan, y, w);
#elif KVEIK_PAIRS
  if (arena.type == KvType::bf16) return attend<PairProducts>(q, arena, layer, plan, y, w);
#endif
  attend<VectorProducts>(q, arena, layer, plan, y, w);
}

}  // namespace KVEIK_LEVEL
}  // namespace kveik
