#include "packed_file.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace kveik {

namespace {

constexpr size_t kPiece = 1 << 21;  // what a thread sums at a time
constexpr uint64_t kPrime = 0x9e3779b97f4a7c15;

// Eight chains over 64-bit words, so that they keep up with memory.
uint64_t piece_sum(const char* data, size_t bytes) {
  uint64_t chains[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  char last[64] = {};
  for (size_t i = 0; i < bytes; i += 64) {
    const char* line = data + i;
    if (bytes - i < 64) {
      std::memcpy(last, line, bytes - i);
      line = last;
    }
    for (int chain = 0; chain < 8; ++chain) {
      uint64_t word;
      std::memcpy(&word, line + chain * 8, 8);
      chains[chain] = (chains[chain] ^ word) * kPrime;
      chains[chain] ^= chains[chain] >> 29;
    }
  }
  uint64_t sum = bytes;
  for (uint64_t chain : chains) sum = (sum ^ chain) * kPrime + (sum >> 32);
  return sum;
}

uint64_t sum_of(const std::vector<uint64_t>& sums) {
  return piece_sum(reinterpret_cast<const char*>(sums.data()), sums.size() * sizeof(uint64_t));
}

}  // namespace

uint64_t checksum(Pool& pool, const void* data, size_t bytes) {
  auto pieces = static_cast<int64_t>((bytes + kPiece - 1) / kPiece);
  std::vector<uint64_t> sums(pieces);
  pool.run([&](Worker& w) {
    for (int64_t piece = w.claim(); piece < pieces; piece = w.claim()) {
      size_t offset = piece * kPiece;
      sums[piece] =
          piece_sum(static_cast<const char*>(data) + offset, std::min(kPiece, bytes - offset));
    }
  });
  return sum_of(sums);
}

}  // namespace kveik
