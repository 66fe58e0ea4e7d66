// The integers of a step, before anything is read through them.
//
// They come from Python as flat arrays, and the kernels follow them without looking: a wrong one
// would read or write memory that is not theirs. Everything here is linear in the number of entries
// and allocates nothing unless it throws. It throws
//
//   std::out_of_range      an entry is outside its range: "groups[0].spans[2].rows = 40 is outside
//                          0 .. 12"
//   std::invalid_argument  arrays or shapes do not fit each other
//
// What is not checked: whether a slot that a row sees has been written, and whether the spans cover
// every row once.
#pragma once

#include "kernels.h"

namespace kveik {

// ids[count], each of 0 .. limit - 1. field: its name in the batch.
void check_ids(const char* field, const int64_t* ids, int64_t count, int64_t limit);

// Group `number` of a step of `rows` rows, whose keys and values lie in `arena`.
void check_group(int64_t number, const GroupBatch& batch, const Arena& arena, int64_t rows);

// Whether the arena of group `number` is what an op of `layer` was recorded for.
void check_arena(int64_t number, const Arena& arena, int64_t layer, const AttentionSpec& spec);

}  // namespace kveik
