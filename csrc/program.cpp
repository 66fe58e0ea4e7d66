#include "program.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "batch_check.h"

namespace kveik {

Program::Program(std::shared_ptr<Pool> pool, const Kernels& kernels)
    : pool_(std::move(pool)), kernels_(kernels) {}

// ---- recording ----------------------------------------------------------------------------------

int Program::add_value(int64_t width, bool logit_rows) {
  values_.push_back({width, logit_rows});
  return static_cast<int>(values_.size()) - 1;
}

int Program::add_input(int64_t width, int index) {
  int number = add_value(width, false);
  values_[number].slot = -1 - index;
  return number;
}

int Program::add_spec(const AttentionSpec& spec, std::vector<double> frequencies) {
  for (size_t i = 0; i < specs_.size(); ++i) {
    const AttentionSpec& other = specs_[i]->spec;
    if (specs_[i]->frequencies == frequencies && other.heads == spec.heads &&
        other.kv_heads == spec.kv_heads && other.head_dim == spec.head_dim &&
        other.scale == spec.scale && other.rope.magnitude == spec.rope.magnitude) {
      return static_cast<int>(i);
    }
  }
  auto own = std::make_unique<Spec>(Spec{std::move(frequencies), spec});
  own->spec.rope.half = static_cast<int64_t>(own->frequencies.size());
  own->spec.rope.inverse_frequencies = own->frequencies.data();
  specs_.push_back(std::move(own));
  return static_cast<int>(specs_.size()) - 1;
}

void Program::finish(std::vector<int> outputs) {
  outputs_ = std::move(outputs);
  fuse();
  place();
  for (const Op& op : ops_) {
    if (op.kind != OpKind::attention && op.kind != OpKind::rope_write_kv) continue;
    auto same = [&](const Plan& p) { return p.group == op.group && p.spec == op.spec; };
    if (std::any_of(plans_.begin(), plans_.end(), same)) continue;
    plans_.push_back({op.group, op.spec, {new_attention_plan(), delete_attention_plan}});
  }
}

// Products of one operand that follow each other become one op; silu(gate) * up of two such
// products becomes a gated product, which may write the operand of the product that follows. The
// numbers stay the same, bit for bit.
void Program::fuse() {
  std::vector<Op> fused;
  auto read_once = [&](int number) {
    int uses = static_cast<int>(std::count(outputs_.begin(), outputs_.end(), number));
    for (const Op& op : ops_) uses += static_cast<int>(std::count(op.in, op.in + 3, number));
    return uses == 1;
  };
  for (Op& op : ops_) {
    Op* last = fused.empty() ? nullptr : &fused.back();
    bool pair = last != nullptr && last->kind == OpKind::linear;
    if (pair && op.kind == OpKind::linear && op.in[0] == last->in[0] &&
        op.weights[0]->type == last->weights[0]->type &&
        op.weights[0]->rows() == last->weights[0]->rows()) {
      last->weights.push_back(op.weights[0]);
      last->out.push_back(op.out[0]);
    } else if (pair && op.kind == OpKind::silu_mul && last->out.size() == 2 &&
               op.in[0] == last->out[0] && op.in[1] == last->out[1] && read_once(op.in[0]) &&
               read_once(op.in[1]) && last->weights[0]->out == last->weights[1]->out) {
      last->kind = OpKind::gated;
      last->out = op.out;
    } else {
      fused.push_back(std::move(op));
    }
  }
  ops_ = std::move(fused);
  for (size_t i = 0; i + 1 < ops_.size(); ++i) {
    Op &op = ops_[i], &next = ops_[i + 1];
    bool product = next.kind == OpKind::linear || next.kind == OpKind::gated;
    bool can = op.kind == OpKind::rms_norm ||
               (op.kind == OpKind::gated && op.weights[0]->type == WeightType::bf16);
    if (kernels_.to_operand && can && product && next.weights[0]->type == WeightType::bf16 &&
        next.in[0] == op.out[0] && read_once(op.out[0])) {
      op.direct = next.prepared = true;
      next.from_gated = op.kind == OpKind::gated;
    }
  }
}

// Values whose lives do not overlap share a buffer.
void Program::place() {
  for (size_t i = 0; i < ops_.size(); ++i) {
    for (int number : ops_[i].in) {
      if (number >= 0) values_[number].last_use = static_cast<int>(i);
    }
  }
  for (int number : outputs_) values_[number].last_use = static_cast<int>(ops_.size());
  std::vector<int> free_after(0);  // per slot: the op from which on it is free
  for (size_t i = 0; i < ops_.size(); ++i) {
    for (int number : ops_[i].out) {
      Value& value = values_[number];
      size_t slot = 0;
      while (slot < free_after.size() && free_after[slot] >= static_cast<int>(i)) ++slot;
      if (slot == free_after.size()) {
        free_after.push_back(0);
        slot_widths_.push_back(0);
      }
      free_after[slot] = std::max(value.last_use, static_cast<int>(i));
      slot_widths_[slot] = std::max(slot_widths_[slot], value.width);
      value.slot = static_cast<int>(slot);
    }
  }
  slots_.resize(slot_widths_.size());
}

// ---- a step -------------------------------------------------------------------------------------

float* Program::at(int number) const {
  return static_cast<float*>(slots_[values_[number].slot].data());
}

const float* Program::output(int number) const { return at(outputs_.at(number)); }

const float* Program::read(int number, const StepBatch& batch) const {
  if (number < 0) return nullptr;
  int slot = values_[number].slot;
  return slot >= 0 ? at(number) : batch.inputs[-1 - slot].data;
}

int64_t Program::rows_of_value(int number, const StepBatch& batch) const {
  return values_[number].logit_rows ? batch.logit_rows : batch.rows;
}

int64_t Program::rows_of(int number, const StepBatch& batch) const {
  return rows_of_value(outputs_.at(number), batch);
}

const AttentionPlan& Program::plan_of(const Op& op) const {
  for (const Plan& plan : plans_) {
    if (plan.group == op.group && plan.spec == op.spec) return *plan.plan;
  }
  throw std::logic_error("no attention plan");  // finish makes one for every op
}

void Program::check(const StepBatch& batch) const {
  for (size_t i = 0; i < batch.groups.size() && i < batch.arenas.size(); ++i) {
    check_group(static_cast<int64_t>(i), batch.groups[i], batch.arenas[i], batch.rows);
  }
  for (const Op& op : ops_) check_op(op, batch);
}

void Program::check_op(const Op& op, const StepBatch& batch) const {
  for (int number : op.in) {
    if (number < 0 || values_[number].slot >= 0) continue;
    const StepBatch::Input& input = batch.inputs.at(-1 - values_[number].slot);
    if (input.rows != batch.rows || input.width != values_[number].width) {
      throw std::invalid_argument("an input of a step of " + std::to_string(batch.rows) +
                                  " rows x " + std::to_string(values_[number].width) + " has " +
                                  std::to_string(input.rows) + " x " + std::to_string(input.width));
    }
  }
  if (op.kind == OpKind::embed) {
    const char* field = op.flag ? "positions" : "token_ids";
    int64_t count = op.flag ? batch.positions_count : batch.token_ids_count;
    if (count != batch.rows) {
      throw std::invalid_argument(std::string(field) + " has " + std::to_string(count) +
                                  " entries, the step " + std::to_string(batch.rows) + " rows");
    }
    check_ids(field, op.flag ? batch.positions : batch.token_ids, count, op.table->count);
  } else if (op.kind == OpKind::take_rows) {
    check_ids("logit_rows", batch.logit_row_ids, batch.logit_rows, batch.rows);
  } else if (op.kind == OpKind::rope_write_kv || op.kind == OpKind::attention) {
    size_t group = static_cast<size_t>(op.group);  // negative: too large
    if (group >= batch.groups.size() || group >= batch.arenas.size()) {
      throw std::invalid_argument("attention of group " + std::to_string(op.group) +
                                  " in a step of " + std::to_string(batch.groups.size()) +
                                  " groups and " + std::to_string(batch.arenas.size()) + " arenas");
    }
    check_arena(op.group, batch.arenas[group], op.layer, specs_[op.spec]->spec);
  }
}

void Program::run(const StepBatch& batch) {
  check(batch);
  int64_t most = std::max(batch.rows, batch.logit_rows);
  for (size_t i = 0; i < slots_.size(); ++i) {
    slots_[i].reserve(most * slot_widths_[i] * sizeof(float) + 64);
  }
  size_t operand = 0, next = 0;
  for (const Op& op : ops_) {
    if (op.kind != OpKind::linear && op.kind != OpKind::gated) continue;
    const Linear& weight = *op.weights[0];
    size_t& bytes = op.from_gated ? next : operand;
    bytes = std::max(bytes, kernels_.operand_bytes(weight.rows(), most, weight.in));
  }
  operand_.reserve(operand);
  next_operand_.reserve(next);
  for (Plan& plan : plans_) {
    plan_attention(*plan.plan, batch.groups.at(plan.group), specs_[plan.spec]->spec);
  }
  pool_->run([&](Worker& w) { step(batch, w); });
}

void Program::step(const StepBatch& batch, Worker& w) {
  for (const Op& op : ops_) {
    run_op(op, batch, w);
    w.barrier();
  }
}

void Program::run_products(const Op& op, const StepBatch& batch, Worker& w) {
  int64_t rows = rows_of_value(op.in[0], batch);
  const Linear& first = *op.weights[0];
  void* operand = op.from_gated ? next_operand_.data() : operand_.data();
  if (!op.prepared) {
    kernels_.convert(first.rows(), read(op.in[0], batch), values_[op.in[0]].width, rows, first.in,
                     operand, w);
    w.barrier();
  }
  if (op.kind == OpKind::gated) {
    kernels_.multiply_gated(first, *op.weights[1], operand, rows,
                            op.direct ? nullptr : at(op.out[0]), values_[op.out[0]].width,
                            next_operand_.data(), w);
    return;
  }
  constexpr size_t kMost = 8;
  float* y[kMost];
  int64_t strides[kMost];
  for (size_t start = 0; start < op.out.size(); start += kMost) {
    size_t count = std::min(kMost, op.out.size() - start);
    for (size_t i = 0; i < count; ++i) {
      y[i] = at(op.out[start + i]);
      strides[i] = values_[op.out[start + i]].width;
    }
    if (start > 0) w.barrier();
    kernels_.multiply(op.weights.data() + start, y, strides, count, operand, rows, w);
  }
}

void Program::run_op(const Op& op, const StepBatch& batch, Worker& w) {
  auto in = [&](int i) { return read(op.in[i], batch); };
  int64_t width = op.in[0] >= 0 ? values_[op.in[0]].width : 0;
  int64_t rows = op.in[0] >= 0 ? rows_of_value(op.in[0], batch) : batch.rows;
  if (rows == 0) return;  // no logits are wanted of this step
  switch (op.kind) {
    case OpKind::embed:
      kernels_.embed(*op.table, op.flag ? batch.positions : batch.token_ids, in(0), batch.rows,
                     at(op.out[0]), w);
      break;
    case OpKind::rms_norm:
      kernels_.rms_norm(in(0), in(1), op.scale, op.eps, rows, width,
                        op.out.size() > 1 ? at(op.out[1]) : nullptr,
                        op.direct ? nullptr : at(op.out[0]), operand_.data(), w);
      break;
    case OpKind::layer_norm:
      kernels_.layer_norm(in(0), in(1), op.scale, op.shift, op.eps, rows, width,
                          op.out.size() > 1 ? at(op.out[1]) : nullptr, at(op.out[0]), w);
      break;
    case OpKind::qk_norm:
      kernels_.rms_norm(in(0), nullptr, op.scale, op.eps, rows * op.heads, width / op.heads,
                        nullptr, at(op.out[0]), nullptr, w);
      break;
    case OpKind::linear:
    case OpKind::gated:
      run_products(op, batch, w);
      break;
    case OpKind::silu_mul:
      kernels_.silu_mul(in(0), in(1), rows * width, at(op.out[0]), w);
      break;
    case OpKind::gelu:
      kernels_.gelu(in(0), rows * width, op.flag, at(op.out[0]), w);
      break;
    case OpKind::add:
      kernels_.add(in(0), in(1), rows * width, at(op.out[0]), w);
      break;
    case OpKind::take_rows: {
      Share own = share(w, batch.logit_rows);
      for (int64_t row = own.begin; row < own.end; ++row) {
        std::memcpy(at(op.out[0]) + row * width, in(0) + batch.logit_row_ids[row] * width,
                    width * sizeof(float));
      }
      break;
    }
    case OpKind::rope_write_kv:
      kernels_.rope_write_kv(in(0), in(1), batch.arenas[op.group], op.layer, plan_of(op), w);
      break;
    case OpKind::attention:
      kernels_.attention(in(0), batch.arenas[op.group], op.layer, plan_of(op), at(op.out[0]), w);
      break;
  }
}

}  // namespace kveik
