// A step as a list of ops over values: recorded once, replayed for every batch.
//
// A value is rows x width float32; rows are those of the step (T) or those whose logits are wanted
// (R). No op depends on numbers of the batch, and no kernel on the number of rows, so one program
// serves every batch. Python records it through kernels/native.py; `run` is one native call.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "attention_plan.h"
#include "kernels.h"
#include "memory.h"
#include "pool.h"

namespace kveik {

enum class OpKind {
  embed,
  rms_norm,
  layer_norm,
  linear,
  gated,
  silu_mul,
  gelu,
  add,
  take_rows,
  qk_norm,
  rope_write_kv,
  attention,
};

// What one op reads and writes: numbers of values, -1 where there is none.
struct Op {
  OpKind kind;
  int in[3] = {-1, -1, -1};
  std::vector<int> out = {};
  std::vector<const Linear*> weights = {};  // linear: one each for `out`; gated: gate, up
  const float* scale = nullptr;             // norms: [width]
  const float* shift = nullptr;
  const Table* table = nullptr;  // embed
  float eps = 0;
  bool flag = false;                   // embed: by position, not by token id; gelu: tanh form
  bool direct = false;                 // gated, rms_norm: to the operand of the next op
  bool prepared = false;               // linear, gated: the op before has written the operand,
  bool from_gated = false;             // which is the second one
  int64_t heads = 0;                   // qk_norm
  int group = 0, layer = 0, spec = 0;  // rope_write_kv, attention
};

struct Value {
  int64_t width;
  bool logit_rows;    // R rows, else T
  int last_use = -1;  // number of the op that reads it last
  int slot = -1;      // the buffer it lies in; -1 - i: input i of the batch
};

// What changes from step to step. inputs: one array per `input` op, [rows][width]. token_ids and
// positions may be empty where no op reads them.
struct StepBatch {
  struct Input {
    const float* data;
    int64_t rows, width;
  };
  int64_t rows = 0, logit_rows = 0, token_ids_count = 0, positions_count = 0;
  const int64_t* token_ids = nullptr;      // [token_ids_count]
  const int64_t* positions = nullptr;      // [positions_count]
  const int64_t* logit_row_ids = nullptr;  // [logit_rows]
  std::vector<GroupBatch> groups;
  std::vector<Arena> arenas;
  std::vector<Input> inputs;
};

class Program {
 public:
  Program(std::shared_ptr<Pool> pool, const Kernels& kernels);

  // Recording: each returns the number of a new value. Throws std::invalid_argument for widths that
  // do not fit.
  int add_value(int64_t width, bool logit_rows);
  int add_input(int64_t width, int index);  // array `index` of StepBatch::inputs
  const Value& value(int number) const { return values_.at(number); }
  void add_op(Op op) { ops_.push_back(std::move(op)); }
  int add_spec(const AttentionSpec& spec, std::vector<double> frequencies);

  // Ends the recording: fuses neighbours, gives every value a buffer. outputs stay readable.
  void finish(std::vector<int> outputs);

  // Throws before anything is computed where the batch names what does not exist (batch_check.h).
  void run(const StepBatch& batch);
  const float* output(int number) const;
  int64_t output_width(int number) const { return values_[outputs_.at(number)].width; }
  int64_t rows_of(int number, const StepBatch& batch) const;

 private:
  struct Spec {
    std::vector<double> frequencies;
    AttentionSpec spec;
  };
  struct Plan {
    int group, spec;
    std::unique_ptr<AttentionPlan, void (*)(AttentionPlan*)> plan;
  };

  void fuse();
  void place();
  void check(const StepBatch& batch) const;
  void check_op(const Op& op, const StepBatch& batch) const;
  void step(const StepBatch& batch, Worker& w);
  void run_op(const Op& op, const StepBatch& batch, Worker& w);
  void run_products(const Op& op, const StepBatch& batch, Worker& w);
  float* at(int number) const;
  const float* read(int number, const StepBatch& batch) const;
  int64_t rows_of_value(int number, const StepBatch& batch) const;
  const AttentionPlan& plan_of(const Op& op) const;

  std::shared_ptr<Pool> pool_;
  const Kernels& kernels_;
  std::vector<Op> ops_;
  std::vector<Value> values_;
  std::vector<int> outputs_;
  std::vector<std::unique_ptr<Spec>> specs_;
  std::vector<Plan> plans_;
  std::vector<int64_t> slot_widths_;
  std::vector<Buffer> slots_;
  Buffer operand_, next_operand_;
};

}  // namespace kveik
