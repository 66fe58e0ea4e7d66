// One thread of a running step. Every worker walks the same list of ops and takes its share of
// each.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace kveik {

struct Team;  // pool.cpp: what the workers of one pool share

struct Worker {
  int index;  // 0 .. count - 1; 0 is the thread that called
  int count;
  Team* team;

  // Waits for all workers; spins at most 50 us, then sleeps. Resets `claim`.
  void barrier();

  // The next piece of work that nobody has taken since the last barrier, or >= total when all are.
  int64_t claim();

  // At least `bytes` of memory of this worker alone, 64-byte aligned, valid until the next call.
  // It is kept and grows, so that a step in the steady state allocates nothing.
  void* scratch(size_t bytes);
};

// rows begin .. end of `total` that are worker w's fixed share, in multiples of `grain`.
struct Share {
  int64_t begin, end;
};
inline Share share(const Worker& w, int64_t total, int64_t grain = 1) {
  int64_t pieces = (total + grain - 1) / grain;
  int64_t begin = pieces * w.index / w.count * grain;
  int64_t end = pieces * (w.index + 1) / w.count * grain;
  return {begin < total ? begin : total, end < total ? end : total};
}

}  // namespace kveik
