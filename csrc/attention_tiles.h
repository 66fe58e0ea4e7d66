// Products of attention in tile registers, bfloat16: level amx with keys and values in bfloat16.
// One of the `Products` that attention.h describes.
//
// Rows beyond the last one are multiplied and not read. Keys and values are loaded past the
// first-level cache, which the scores fill.
#pragma once

#include "attention_slots.h"
#include "attention_softmax.h"
#include "tile.h"

namespace kveik {
namespace KVEIK_LEVEL {

struct TileProducts {
  using Element = bf16;

  static constexpr bool fetches = false;
  static void configure_tiles() { configure(product_tiles(kRows, kRows)); }
  static bool reads_in_place(const Arena&, bool by_tile) { return by_tile; }

  // Scores of 16 rows and slots s.first .. s.end. queries [rows][width].
  // Tiles 0, 1: sums; 4, 5: rows (operand A); 2, 3, 6, 7: keys (operand B).
  static void score(const bf16* queries, int64_t width, int, const Slots<bf16>& s, float* scores) {
    if (width == 64) return score_64(queries, s, scores);
    for (int c = s.first / kLanes; c < s.end / kLanes; c += 2) {
      _tile_zero(0);
      _tile_zero(1);
      for (int64_t i = 0; i < width; i += 32) {
        _tile_loadd(4, queries + i, width * sizeof(bf16));
        _tile_loadd(6, s.column[c] + i * s.stride, s.stride * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, s.column[c + 1] + i * s.stride, s.stride * 4);
        _tile_dpbf16ps(1, 4, 7);
      }
      _tile_stored(0, scores + c * kLine, 64);
      _tile_stored(1, scores + c * kLine + kLine, 64);
    }
  }

  // The same with rows that stay in their tiles.
  static void score_64(const bf16* queries, const Slots<bf16>& s, float* scores) {
    int64_t bytes = s.stride * 4, half = 32 * s.stride;
    _tile_loadd(4, queries, 128);
    _tile_loadd(5, queries + 32, 128);
    for (int c = s.first / kLanes; c < s.end / kLanes; c += 2) {
      const bf16 *left = s.column[c], *right = s.column[c + 1];
      _tile_zero(0);
      _tile_zero(1);
      _tile_stream_loadd(2, left, bytes);
      _tile_dpbf16ps(0, 4, 2);
      _tile_stream_loadd(3, right, bytes);
      _tile_dpbf16ps(1, 4, 3);
      _tile_stream_loadd(6, left + half, bytes);
      _tile_dpbf16ps(0, 5, 6);
      _tile_stream_loadd(7, right + half, bytes);
      _tile_dpbf16ps(1, 5, 7);
      _tile_stored(0, scores + c * kLine, 64);
      _tile_stored(1, scores + c * kLine + kLine, 64);
    }
  }

  // partial [16][width] = weights x values, 64 (or the last 32) dimensions at a time.
  // weigh(step, first row, end row) makes weights: those of the next step while this one
  // multiplies. Tiles 0..3: sums, 4: weights (operand A), 5 and 6: values (operand B).
  template <int sums, class Weigh>
  static void combine(const float* weights, int64_t width, const bf16* values, const Slots<bf16>& s,
                      float* partial, Weigh weigh) {
    int64_t bytes = width * 4;
    int end = s.end / kStep;
    _tile_zero(0);
    _tile_zero(1);
    if (sums == 4) _tile_zero(2);
    if (sums == 4) _tile_zero(3);
    weigh(s.first / kStep);
    for (int step = s.first / kStep; step < end; ++step) {
      const bf16* own = values + step * kStep * width;
      if (step + 1 < end) weigh(step + 1);
      _tile_loadd(4, weights + 2 * step * kLine, 64);
      _tile_stream_loadd(5, own, bytes);
      _tile_dpbf16ps(0, 4, 5);
      _tile_stream_loadd(6, own + 32, bytes);
      _tile_dpbf16ps(1, 4, 6);
      if (sums == 4) _tile_stream_loadd(5, own + 64, bytes);
      if (sums == 4) _tile_dpbf16ps(2, 4, 5);
      if (sums == 4) _tile_stream_loadd(6, own + 96, bytes);
      if (sums == 4) _tile_dpbf16ps(3, 4, 6);
    }
    _tile_stored(0, partial, bytes);
    _tile_stored(1, partial + kLanes, bytes);
    if (sums == 4) _tile_stored(2, partial + 2 * kLanes, bytes);
    if (sums == 4) _tile_stored(3, partial + 3 * kLanes, bytes);
  }
  template <class Weigh>
  static void combine(const float* weights, int64_t width, int, const Slots<bf16>& s,
                      float* partial, Weigh weigh) {
    auto weighed = [](int) {};
    if (width == 32) return combine<2>(weights, width, s.values, s, partial, weigh);
    combine<4>(weights, width, s.values, s, partial, weigh);
    int64_t i = 64;
    for (; i + 64 <= width; i += 64) {
      combine<4>(weights, width, s.values + 2 * i, s, partial + i, weighed);
    }
    if (i < width) combine<2>(weights, width, s.values + 2 * i, s, partial + i, weighed);
  }
};

}  // namespace KVEIK_LEVEL
}  // namespace kveik
