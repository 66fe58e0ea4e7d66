#include "arena.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace kveik {

namespace {

constexpr int64_t kWidthGrain = 32;

void check(const Arena& a, int64_t value, int64_t limit, const char* what) {
  if (value >= 0 && value < limit) return;
  throw std::out_of_range(std::string(what) + " " + std::to_string(value) + " is outside 0 .. " +
                          std::to_string(limit - 1) + " of an arena of " +
                          std::to_string(a.blocks) + " blocks");
}

// [rows][block_size] numbers of four bytes (a float, or a pair of bfloat16)
void copy_keys(const Arena& a, const char* from, char* to, int64_t slots) {
  int64_t row = a.block_size * 4, rows = a.key_bytes / row;
  for (int64_t i = 0; i < rows; ++i) std::memcpy(to + i * row, from + i * row, slots * 4);
}

void copy_values(const Arena& a, const char* from, char* to, int64_t slots) {
  if (a.type == KvType::f32) {
    std::memcpy(to, from, slots * a.width * 4);
    return;
  }
  int64_t whole = slots / 2 * a.width * 4;
  std::memcpy(to, from, whole);
  if (slots % 2 == 0) return;
  for (int64_t i = 0; i < a.width; ++i) {  // the first of each pair
    std::memcpy(to + whole + 4 * i, from + whole + 4 * i, 2);
  }
}

}  // namespace

ArenaMemory::ArenaMemory(KvType type, int64_t layers, int64_t kv_heads, int64_t blocks,
                         int64_t block_size, int64_t head_dim) {
  for (int64_t size : {layers, kv_heads, blocks, block_size, head_dim}) {
    if (size < 1) throw std::invalid_argument("an arena has a size of " + std::to_string(size));
  }
  int64_t width = (head_dim + kWidthGrain - 1) / kWidthGrain * kWidthGrain;
  int64_t slot = width * (type == KvType::bf16 ? 2 : 4);
  int64_t value_slots = type == KvType::bf16 ? (block_size + 1) / 2 * 2 : block_size;
  arena = {type,
           layers,
           kv_heads,
           blocks,
           block_size,
           head_dim,
           width,
           block_size * slot,
           value_slots * slot,
           nullptr};
  memory = Buffer(layers * blocks * kv_heads * (arena.key_bytes + arena.value_bytes));
  arena.memory = static_cast<char*>(memory.data());
}

void copy_block(const Arena& a, int64_t source, int64_t target, int64_t slots) {
  check(a, source, a.blocks, "block");
  check(a, target, a.blocks, "block");
  check(a, slots, a.block_size + 1, "number of slots");
  if (source == target) return;
  for (int64_t layer = 0; layer < a.layers; ++layer) {
    for (int64_t head = 0; head < a.kv_heads; ++head) {
      copy_keys(a, a.keys(layer, head, source), a.keys(layer, head, target), slots);
      copy_values(a, a.values(layer, head, source), a.values(layer, head, target), slots);
    }
  }
}

void erase_block(const Arena& a, int64_t block) {
  check(a, block, a.blocks, "block");
  for (int64_t layer = 0; layer < a.layers; ++layer) {
    std::memset(a.keys(layer, 0, block), 0, a.kv_heads * (a.key_bytes + a.value_bytes));
  }
}

}  // namespace kveik
