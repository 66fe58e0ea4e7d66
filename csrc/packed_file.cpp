#include "packed_file.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace kveik {

namespace {

constexpr size_t kPiece = 1 << 21;  // what a thread reads and sums at a time
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

// Calls body(piece, offset, bytes) for every piece, in some thread.
template <typename Body>
void each_piece(Pool& pool, size_t bytes, Body body) {
  auto pieces = static_cast<int64_t>((bytes + kPiece - 1) / kPiece);
  pool.run([&](Worker& w) {
    for (int64_t piece = w.claim(); piece < pieces; piece = w.claim()) {
      size_t offset = piece * kPiece;
      body(piece, offset, std::min(kPiece, bytes - offset));
    }
  });
}

bool read_fully(int file, char* to, size_t bytes, int64_t offset) {
#if defined(__unix__) || defined(__APPLE__)
  while (bytes > 0) {
    ssize_t now = pread(file, to, bytes, offset);
    if (now <= 0) return false;
    to += now;
    offset += now;
    bytes -= now;
  }
  return true;
#else
  (void)file, (void)to, (void)bytes, (void)offset;
  return false;
#endif
}

}  // namespace

uint64_t checksum(Pool& pool, const void* data, size_t bytes) {
  std::vector<uint64_t> sums((bytes + kPiece - 1) / kPiece);
  each_piece(pool, bytes, [&](int64_t piece, size_t offset, size_t count) {
    sums[piece] = piece_sum(static_cast<const char*>(data) + offset, count);
  });
  return sum_of(sums);
}

Buffer read_part(Pool& pool, int file, int64_t offset, size_t bytes, uint64_t& sum) {
  Buffer buffer(bytes);
  std::vector<uint64_t> sums((bytes + kPiece - 1) / kPiece);
  std::atomic<bool> complete{true};
  each_piece(pool, bytes, [&](int64_t piece, size_t first, size_t count) {
    char* to = static_cast<char*>(buffer.data()) + first;
    if (!read_fully(file, to, count, offset + static_cast<int64_t>(first))) complete.store(false);
    sums[piece] = piece_sum(to, count);
  });
  if (!complete.load()) throw std::runtime_error("the file ends too early or cannot be read");
  sum = sum_of(sums);
  return buffer;
}

}  // namespace kveik
