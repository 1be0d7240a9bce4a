// One instruction set's version of all kernels; compiled once per level with -DLEVEL=name and its flags.
#include "attention.h"
#include "gemm.h"
#include "layer_rows.h"
#include "lora.h"
#include "pack_adapter.h"
#include "pointwise.h"

namespace {

// run(x, w): nulls of the dtypes of activations and pool
template <class Run>
inline void with_dtypes(const LoraCall& call, const Run& run) {
  const float* wide = nullptr;
  const bf16* half = nullptr;
  if (call.x_dtype == FLOAT32)
    call.pool_dtype == FLOAT32 ? run(wide, wide) : run(wide, half);
  else
    call.pool_dtype == FLOAT32 ? run(half, wide) : run(half, half);
}

template <class X, class W>
void shrink_of(const X*, const W*, const LoraCall& call, const LoraUnit& unit, float* hidden) {
  lora_shrink<X, W>(call, unit, hidden);
}

template <class X, class W>
void expand_of(const X*, const W*, const LoraCall& call, const LoraUnit& unit, const float* hidden, float* scratch) {
  lora_expand<X, W>(call, unit, hidden, scratch);
}

void shrink(const LoraCall& call, const LoraUnit& unit, float* hidden) {
  with_dtypes(call, [&](auto x, auto w) { shrink_of(x, w, call, unit, hidden); });
}

void expand(const LoraCall& call, const LoraUnit& unit, const float* hidden, float* scratch) {
  with_dtypes(call, [&](auto x, auto w) { expand_of(x, w, call, unit, hidden, scratch); });
}

void write(const AttentionCall& call, int64_t token) {
  call.dtype == FLOAT32 ? write_token<float>(call, token) : write_token<bf16>(call, token);
}

void attend(const AttentionCall& call, const AttentionUnit& unit, float* scratch) {
  call.dtype == FLOAT32 ? attend_unit<float>(call, unit, scratch) : attend_unit<bf16>(call, unit, scratch);
}

void norm(const NormCall& call, int64_t row) {
  call.dtype == FLOAT32 ? norm_row<float>(call, row) : norm_row<bf16>(call, row);
}

void gate(const GateCall& call, int64_t row) {
  call.dtype == FLOAT32 ? gate_row<float>(call, row) : gate_row<bf16>(call, row);
}

void gemm(const GemmCall& call, int64_t panel, int64_t first_row, int64_t num_rows, Ahead& ahead) {
  call.dtype == FLOAT32 ? gemm_panel<float>(call, panel, first_row, num_rows, ahead)
                        : gemm_panel<bf16>(call, panel, first_row, num_rows, ahead);
}

void before_attention(const LayerCall& call, int64_t row) {
  call.dtype == FLOAT32 ? before_attention_row<float>(call, row) : before_attention_row<bf16>(call, row);
}

void rotate(const LayerCall& call, int64_t row) {
  call.dtype == FLOAT32 ? rotate_row<float>(call, row) : rotate_row<bf16>(call, row);
}

void between(const LayerCall& call, int64_t row) {
  call.dtype == FLOAT32 ? between_row<float>(call, row) : between_row<bf16>(call, row);
}

void activate(const LayerCall& call, int64_t row) {
  call.dtype == FLOAT32 ? activate_row<float>(call, row) : activate_row<bf16>(call, row);
}

void end(const LayerCall& call, int64_t row) {
  call.dtype == FLOAT32 ? end_row<float>(call, row) : end_row<bf16>(call, row);
}

bool pack_adapter(const PackCall& call, const PackPlace& place) {
  if (call.from_dtype == FLOAT32) return pack_from<float>(call, place);
  return call.from_dtype == BFLOAT16 ? pack_from<bf16>(call, place) : pack_from<half>(call, place);
}

}  // namespace

extern const Level LEVEL;
const Level LEVEL = {shrink, expand, write, attend, norm, gate, gemm, before_attention, rotate, between, activate, end,
                     pack_adapter};
