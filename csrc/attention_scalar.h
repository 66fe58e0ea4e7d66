// The oracle of attention: plain loops over single numbers, sums in double precision, one worker.
// Softmax over everything that a row sees at once, without splits.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "attention_plan.h"

namespace kveik {
namespace scalar {

// The number at `index` of a piece, and where a number lies in one (kernels.h).
inline double stored(const Arena& a, const void* piece, int64_t index) {
  float value;
  if (a.type == KvType::f32) {
    value = static_cast<const float*>(piece)[index];
  } else {
    uint32_t bits = uint32_t(static_cast<const bf16*>(piece)[index]) << 16;
    std::memcpy(&value, &bits, sizeof value);
  }
  return value;
}

inline void put(const Arena& a, void* piece, int64_t index, float value) {
  if (a.type == KvType::f32) {
    static_cast<float*>(piece)[index] = value;
    return;
  }
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bool number = value == value;
  bits = number ? bits + 0x7fff + ((bits >> 16) & 1) : bits | 0x400000;
  static_cast<bf16*>(piece)[index] = static_cast<bf16>(bits >> 16);
}

inline int64_t key_index(const Arena& a, int64_t slot, int64_t i) {
  if (a.type == KvType::f32) return i * a.block_size + slot;
  return (i / 2 * a.block_size + slot) * 2 + i % 2;
}

inline int64_t value_index(const Arena& a, int64_t slot, int64_t i) {
  if (a.type == KvType::f32) return slot * a.width + i;
  return (slot / 2 * a.width + i) * 2 + slot % 2;
}

// x [head_dim] turned by an angle of the plan.
inline std::vector<double> turned(const AttentionPlan& plan, const float* x, int32_t angle) {
  std::vector<double> out(x, x + plan.spec.head_dim);
  int64_t half = plan.spec.rope.half;
  for (int64_t i = 0; i < half; ++i) {
    double cosine = plan.cosines(angle)[i], sine = plan.sines(angle)[i];
    out[i] = x[i] * cosine - x[half + i] * sine;
    out[half + i] = x[half + i] * cosine + x[i] * sine;
  }
  return out;
}

inline void rope_write_kv(const float* k, const float* v, const Arena& a, int64_t layer,
                          const AttentionPlan& plan, Worker& w) {
  if (w.index != 0) return;
  int64_t head_dim = plan.spec.head_dim;
  for (size_t row = 0; row < plan.slots.size(); ++row) {
    int64_t block = plan.slots[row] / a.block_size, slot = plan.slots[row] % a.block_size;
    for (int64_t head = 0; head < a.kv_heads; ++head, k += head_dim, v += head_dim) {
      std::vector<double> key = turned(plan, k, plan.key_angles[row]);
      key.resize(a.width, 0.0);
      char *keys = a.keys(layer, head, block), *values = a.values(layer, head, block);
      for (int64_t i = 0; i < a.width; ++i) {
        put(a, keys, key_index(a, slot, i), static_cast<float>(key[i]));
        put(a, values, value_index(a, slot, i), i < head_dim ? v[i] : 0.0f);
      }
    }
  }
}

// One head of one row: scores of what it sees, in order, and where.
struct SeenSlots {
  std::vector<double> scores;
  std::vector<int64_t> blocks, slots;
};

inline void add_seen(const AttentionPlan& plan, const AttentionPlan::Visit& visit,
                     const AttentionPlan::Seen& seen, const float* q, const Arena& a, int64_t layer,
                     int64_t head, SeenSlots& found) {
  std::vector<double> query = turned(plan, q, seen.angle);
  const AttentionPlan::Piece& piece = plan.pieces[visit.piece];
  for (int32_t r = piece.first_run; r < piece.first_run + piece.runs; ++r) {
    const AttentionPlan::Run& run = plan.runs[r];
    for (int32_t at = run.slot; at < run.slot + run.count; ++at) {
      if (at < seen.first || at > seen.last) continue;
      int64_t slot = run.offset + at - run.slot;
      double score = 0;
      for (int64_t i = 0; i < a.head_dim; ++i) {
        score += query[i] * stored(a, a.keys(layer, head, run.block), key_index(a, slot, i));
      }
      found.scores.push_back(score * plan.spec.scale);
      found.blocks.push_back(run.block);
      found.slots.push_back(slot);
    }
  }
}

inline void put_average(const SeenSlots& found, const Arena& a, int64_t layer, int64_t head,
                        float* y) {
  double top = -std::numeric_limits<double>::infinity(), total = 0;
  for (double score : found.scores) top = score > top ? score : top;
  std::vector<double> sums(a.head_dim, 0.0);
  bool broken = false;
  for (size_t n = 0; n < found.scores.size(); ++n) {
    double weight = std::exp(found.scores[n] - top);
    total += weight;
    for (int64_t i = 0; i < a.head_dim; ++i) {
      const char* values = a.values(layer, head, found.blocks[n]);
      double value = stored(a, values, value_index(a, found.slots[n], i));
      broken |= !std::isfinite(value);
      sums[i] += weight * value;
    }
  }
  for (int64_t i = 0; i < a.head_dim; ++i) {
    y[i] = total == 0 ? 0.0f : static_cast<float>(sums[i] / total);
    if (broken || total != total) y[i] = std::numeric_limits<float>::quiet_NaN();
  }
}

inline void attention(const float* q, const Arena& a, int64_t layer, const AttentionPlan& plan,
                      float* y, Worker& w) {
  if (w.index != 0) return;
  int64_t share = plan.heads_per_kv_head;
  for (const AttentionPlan::Item& item : plan.items) {
    for (int32_t row = 0; row < item.rows; ++row) {
      for (int64_t head = 0; head < plan.spec.heads; ++head) {
        int64_t at =
            (plan.item_rows[item.first_row + row] * plan.spec.heads + head) * plan.spec.head_dim;
        SeenSlots found;
        for (int32_t v = item.first_visit; v < item.first_visit + item.visits; ++v) {
          const AttentionPlan::Visit& visit = plan.visits[v];
          if (row < visit.begin || row >= visit.end) continue;
          add_seen(plan, visit, plan.seen[visit.first_seen + row - visit.begin], q + at, a, layer,
                   head / share, found);
        }
        put_average(found, a, layer, head / share, y + at);
      }
    }
  }
}

}  // namespace scalar
}  // namespace kveik
