#include "arena.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace kveik {

namespace {

constexpr int64_t kWidthGrain = 32;

// What of (size) is a block of keys, of values; odd blocks of bfloat16 have half a pair too many.
int64_t value_slots(const Arena& a) {
  return a.type == KvType::bf16 ? (a.block_size + 1) / 2 * 2 : a.block_size;
}
int64_t number_bytes(const Arena& a) { return a.type == KvType::bf16 ? 2 : 4; }

void check(const Arena& a, int64_t value, int64_t limit, const char* what) {
  if (value >= 0 && value < limit) return;
  throw std::out_of_range(std::string(what) + " " + std::to_string(value) + " is outside 0 .. " +
                          std::to_string(limit - 1) + " of an arena of " +
                          std::to_string(a.blocks) + " blocks");
}

// plane: layer * kv_heads + head
int64_t piece_of(const Arena& a, int64_t plane, int64_t block) {
  return (plane / a.kv_heads * a.blocks + block) * a.kv_heads + plane % a.kv_heads;
}

char* block_at(void* plane, int64_t piece, int64_t bytes) {
  return static_cast<char*>(plane) + piece * bytes;
}

// [rows][block_size] numbers of four bytes (a float, or a pair of bfloat16)
void copy_keys(const Arena& a, const char* from, char* to, int64_t slots) {
  int64_t row = a.block_size * 4, rows = key_block_bytes(a) / row;
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
  arena = {type, layers, kv_heads, blocks, block_size, head_dim, width, nullptr, nullptr};
  int64_t pieces = layers * kv_heads * blocks;
  keys = Buffer(pieces * key_block_bytes(arena));
  values = Buffer(pieces * value_block_bytes(arena));
  arena.keys = keys.data();
  arena.values = values.data();
}

int64_t key_block_bytes(const Arena& a) { return a.block_size * a.width * number_bytes(a); }
int64_t value_block_bytes(const Arena& a) { return value_slots(a) * a.width * number_bytes(a); }

void copy_block(const Arena& a, int64_t source, int64_t target, int64_t slots) {
  check(a, source, a.blocks, "block");
  check(a, target, a.blocks, "block");
  check(a, slots, a.block_size + 1, "number of slots");
  if (source == target) return;
  int64_t keys = key_block_bytes(a), values = value_block_bytes(a);
  for (int64_t plane = 0; plane < a.layers * a.kv_heads; ++plane) {
    int64_t from = piece_of(a, plane, source), to = piece_of(a, plane, target);
    copy_keys(a, block_at(a.keys, from, keys), block_at(a.keys, to, keys), slots);
    copy_values(a, block_at(a.values, from, values), block_at(a.values, to, values), slots);
  }
}

void erase_block(const Arena& a, int64_t block) {
  check(a, block, a.blocks, "block");
  for (int64_t plane = 0; plane < a.layers * a.kv_heads; ++plane) {
    int64_t piece = piece_of(a, plane, block);
    std::memset(block_at(a.keys, piece, key_block_bytes(a)), 0, key_block_bytes(a));
    std::memset(block_at(a.values, piece, value_block_bytes(a)), 0, value_block_bytes(a));
  }
}

}  // namespace kveik
