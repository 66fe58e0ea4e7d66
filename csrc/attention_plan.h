// What attention derives once per step from (GroupBatch, AttentionSpec).
#pragma once

#include "kernels.h"

namespace kveik {

AttentionPlan* new_attention_plan();
void delete_attention_plan(AttentionPlan* plan);

// Buffers of the plan are reused: a step in the steady state allocates nothing.
void plan_attention(AttentionPlan& plan, const GroupBatch& batch, const AttentionSpec& spec);

}  // namespace kveik
