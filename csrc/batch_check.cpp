#include "batch_check.h"

#include <stdexcept>
#include <string>

namespace kveik {

namespace {

constexpr int64_t kFarthest = int64_t{1} << 53;  // angles are formed in double: exact up to here

// Where a number stands: groups[group].array[index].part; group -1, part null: without.
struct Place {
  int64_t group;
  const char* array;
  int64_t index;
  const char* part;
};

std::string name_of(int64_t group) { return "groups[" + std::to_string(group) + "]"; }

[[noreturn]] void refuse(const Place& at, int64_t value, int64_t low, int64_t high) {
  std::string text = at.group < 0 ? "" : name_of(at.group) + ".";
  text += std::string(at.array) + "[" + std::to_string(at.index) + "]";
  if (at.part != nullptr) text += std::string(".") + at.part;
  throw std::out_of_range(text + " = " + std::to_string(value) + " is outside " +
                          std::to_string(low) + " .. " + std::to_string(high));
}

inline void expect(int64_t value, int64_t low, int64_t high, const Place& at) {
  if (value < low || value > high) [[unlikely]] {
    refuse(at, value, low, high);
  }
}

void expect_ids(int64_t group, const char* array, const int64_t* ids, int64_t count,
                int64_t limit) {
  for (int64_t i = 0; i < count; ++i) expect(ids[i], 0, limit - 1, {group, array, i, nullptr});
}

// One group; `number` is its place in the batch.
struct GroupCheck {
  int64_t number;
  const GroupBatch& batch;
  const Arena& arena;

  const int64_t* span(int64_t s) const { return batch.spans + 4 * s; }
  const int64_t* segment(int64_t g) const { return batch.segments + 3 * g; }

  void fits(int64_t rows) const {
    if (batch.rows != rows) {
      throw std::invalid_argument(name_of(number) + ".slots has " + std::to_string(batch.rows) +
                                  " entries, the step " + std::to_string(rows) + " rows");
    }
    if (batch.block_size != arena.block_size) {
      throw std::invalid_argument(name_of(number) + ".block_size is " +
                                  std::to_string(batch.block_size) + ", that of its arena " +
                                  std::to_string(arena.block_size));
    }
  }

  // Keys are turned to key_positions and written to slots.
  void written() const {
    expect_ids(number, "slots", batch.slots, batch.rows, arena.blocks * arena.block_size);
    for (int64_t row = 0; row < batch.rows; ++row) {
      expect(batch.key_positions[row], -kFarthest, kFarthest,
             {number, "key_positions", row, nullptr});
    }
  }

  void spans() const {
    int64_t wanted = 0;
    for (int64_t s = 0; s < batch.spans_count; ++s) {
      const int64_t* own = span(s);
      expect(own[1], 0, batch.rows, {number, "spans", s, "rows"});
      expect(own[0], 0, batch.rows - own[1], {number, "spans", s, "first_row"});
      expect(own[3], 0, batch.segments_count, {number, "spans", s, "segments"});
      expect(own[2], 0, batch.segments_count - own[3], {number, "spans", s, "first_segment"});
      wanted += own[1] * own[3];
    }
    if (wanted != batch.windows_count) {
      throw std::invalid_argument(name_of(number) + ".windows has " +
                                  std::to_string(batch.windows_count) +
                                  " entries, its spans want " + std::to_string(wanted));
    }
  }

  void segments() const {
    expect_ids(number, "blocks", batch.blocks, batch.blocks_count, arena.blocks);
    for (int64_t g = 0; g < batch.segments_count; ++g) {
      const int64_t* own = segment(g);
      expect(own[1], 0, batch.blocks_count, {number, "segments", g, "blocks"});
      expect(own[0], 0, batch.blocks_count - own[1], {number, "segments", g, "first_block"});
      expect(own[2], -kFarthest, kFarthest, {number, "segments", g, "home"});
    }
  }

  // Once spans and segments are known to be right.
  void windows() const {
    int64_t at = 0;
    for (int64_t s = 0; s < batch.spans_count; ++s) {
      const int64_t* own = span(s);
      for (int64_t row = 0; row < own[1]; ++row) {
        for (int64_t g = own[2]; g < own[2] + own[3]; ++g) window(at++, segment(g)[1]);
      }
    }
  }

  // A window that sees nothing (last < first) names no slot.
  void window(int64_t index, int64_t blocks) const {
    const int64_t* own = batch.windows + 3 * index;
    bool sees = own[1] <= own[2];
    int64_t low = sees ? 0 : -kFarthest, high = sees ? blocks * batch.block_size - 1 : kFarthest;
    expect(own[0], -kFarthest, kFarthest, {number, "windows", index, "query_position"});
    expect(own[1], low, high, {number, "windows", index, "first_slot"});
    expect(own[2], low, high, {number, "windows", index, "last_slot"});
  }
};

}  // namespace

void check_ids(const char* field, const int64_t* ids, int64_t count, int64_t limit) {
  expect_ids(-1, field, ids, count, limit);
}

void check_group(int64_t number, const GroupBatch& batch, const Arena& arena, int64_t rows) {
  GroupCheck check{number, batch, arena};
  check.fits(rows);
  check.written();
  check.spans();
  check.segments();
  check.windows();
}

void check_arena(int64_t number, const Arena& arena, int64_t layer, const AttentionSpec& spec) {
  if (layer < 0 || layer >= arena.layers) {
    throw std::out_of_range("layer = " + std::to_string(layer) + " is outside 0 .. " +
                            std::to_string(arena.layers - 1) + " of the arena of " +
                            name_of(number));
  }
  if (spec.kv_heads != arena.kv_heads || spec.head_dim != arena.head_dim) {
    throw std::invalid_argument(
        "the arena of " + name_of(number) + " has " + std::to_string(arena.kv_heads) +
        " KV heads of " + std::to_string(arena.head_dim) + " numbers, attention has " +
        std::to_string(spec.kv_heads) + " of " + std::to_string(spec.head_dim));
  }
}

}  // namespace kveik
