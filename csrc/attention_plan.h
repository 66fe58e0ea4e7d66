// What attention derives from (GroupBatch, AttentionSpec) once per step and uses in every layer.
//
//   home grid   0 ........... 256 ........... 512 ......
//   segment             [ slot 0 of its first block = home .............. )
//   piece               one split of 256 home positions of one segment: where its slots lie
//   item                rows that go through pieces together, piece by piece from left to right
//   visit               one piece for those rows of an item that see some of it
//
// Rows of different sequences are one item as long as their pieces lie in the same blocks; where
// they part, each goes on with its own. An item with a shared prefix A of rows 0..3:
//
//   visits      A 0..3 | A 0..3 | B 0..1 | B 0..1 | C 2..3
//
// A row meets its own pieces in its own order whatever company it keeps, so grouping saves reads
// and changes no bit.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels.h"

namespace kveik {

constexpr int kSplit = 256;  // slots of a piece: the shape of every partial result
constexpr int kKnown = 8;    // turns that are kept from step to step

struct AttentionPlan {
  // Slots offset .. offset + count of a block are slots slot .. slot + count of the piece.
  struct Run {
    int32_t block, offset, slot, count;
    bool operator==(const Run&) const = default;
  };
  // by_tile: sixteen slots that begin at a multiple of 16 lie side by side in one block.
  struct Piece {
    int32_t first_run, runs;
    bool by_tile;
    uint64_t hash;
  };
  // What one row sees of a piece: slots first .. last inclusive, with the query turned by `angle`.
  struct Seen {
    int32_t angle;
    int16_t first, last;  // last < first: nothing
  };
  // Rows begin .. end of the item meet a piece; slots low .. high are seen by one of them at least.
  struct Visit {
    int32_t piece, begin, end;
    int16_t low, high;
    bool turn;           // some row's query needs another angle than in its last visit
    int64_t first_seen;  // of `seen`, one per row begin .. end
  };
  struct Item {
    int32_t first_row, rows;  // of `item_rows`
    int32_t first_visit, visits;
    int64_t cost;
  };

  AttentionSpec spec;
  int64_t block_size;
  int64_t heads_per_kv_head;

  std::vector<float> angles;        // [angles][2][half]: cos and sin, magnitude included
  std::vector<int64_t> slots;       // [rows] where keys and values are written
  std::vector<int32_t> key_angles;  // [rows]

  std::vector<Run> runs;
  std::vector<Piece> pieces;
  std::vector<Seen> seen;
  std::vector<Visit> visits;
  std::vector<Item> items;  // the most expensive one first
  std::vector<int32_t> item_rows;
  int64_t largest_item = 0;  // rows

  const float* cosines(int32_t angle) const { return &angles[angle * 2 * spec.rope.half]; }
  const float* sines(int32_t angle) const { return cosines(angle) + spec.rope.half; }

 private:
  friend void plan_attention(AttentionPlan&, const GroupBatch&, const AttentionSpec&);
  friend class AttentionPlanner;

  // A row range of one span before it is grouped with others.
  struct Unit {
    int32_t first_row, rows;
    int32_t first_step, steps;
  };
  // One piece of a unit: rows begin .. end of the unit see some of it.
  struct Step {
    int32_t piece, begin, end;
    int16_t low, high;
    int64_t first_seen;
  };
  // Where a piece lies: split `split` of segment `segment`, which begins at its slot `start`.
  struct Place {
    int64_t segment, start;
    int32_t piece;
  };
  std::vector<Unit> units_;
  std::vector<int32_t> order_;
  std::vector<Step> steps_;
  std::vector<Place> places_;
  std::vector<Seen> unit_seen_;
  std::vector<int32_t> turned_;       // per row of an item: the angle of its last visit
  std::vector<int64_t> positions_;    // per angle
  std::vector<int32_t> angle_table_;  // open addressing: position -> angle
  std::vector<int32_t> piece_table_;  // open addressing: runs -> piece
  std::vector<Run> fresh_;
  // cos and sin: [64][2][half], and [2][half] of multiples of 64 that came last, in places by turns
  std::vector<double> fine_, coarse_[kKnown];
  int64_t coarse_positions_[kKnown];
  int next_coarse_ = 0;
};

AttentionPlan* new_attention_plan();
void delete_attention_plan(AttentionPlan* plan);

// Overwrites the plan. It keeps its buffers, so steps of a size seen before allocate nothing, and
// copies what it needs. A plan serves one spec: its frequencies must stay as they were.
void plan_attention(AttentionPlan& plan, const GroupBatch& batch, const AttentionSpec& spec);

}  // namespace kveik
