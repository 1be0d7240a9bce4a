// What a transformer does between its products, row by row in one pass instead of five or six:
//
//   norm   out = round(x / sqrt(mean(x²) + eps)) * (weight + offset)
//   gate   out = round(gate / (1 + exp(-gate))) * up
//
// Rounded to the activations' dtype where transformers rounds, so bf16 results are its own.
#pragma once

#include "calls.h"
#include "lanes.h"

namespace {

inline Lanes rounded(Lanes lanes, const float*) { return lanes; }
inline Lanes rounded(Lanes lanes, const bf16*) {
  bf16 half[LANES];
  store(half, lanes);
  return load(half);
}

template <class T>
void norm_row(const NormCall& call, int64_t row) {
  const T* x = static_cast<const T*>(call.x) + row * call.size;
  const T* weight = static_cast<const T*>(call.weight);
  T* out = static_cast<T*>(call.out) + row * call.size;
  Lanes sums{};
  int64_t c = 0;
  for (; c + LANES <= call.size; c += LANES) sums += load(x + c) * load(x + c);
  float total = sum(sums);
  for (; c < call.size; c++) total += load_one(x + c) * load_one(x + c);
  const float inverse = 1.0f / __builtin_sqrtf(total / call.size + float(call.eps));
  const float offset = float(call.offset);
  // A weight that is one plus an offset is applied in fp32 (Gemma), any other after rounding (Llama).
  for (c = 0; c + LANES <= call.size; c += LANES) {
    const Lanes scaled = load(x + c) * inverse;
    store(out + c, (offset == 0 ? rounded(scaled, x) : scaled) * (load(weight + c) + offset));
  }
  for (; c < call.size; c++) {
    T once;
    float scaled = load_one(x + c) * inverse;
    store_one(&once, scaled);
    if (offset == 0) scaled = load_one(&once);
    store_one(out + c, scaled * (load_one(weight + c) + offset));
  }
}

template <class T>
void gate_row(const GateCall& call, int64_t row) {
  const T* gate = static_cast<const T*>(call.gate) + row * call.gate_stride;
  const T* up = static_cast<const T*>(call.up) + row * call.up_stride;
  T* out = static_cast<T*>(call.out) + row * call.size;
  int64_t c = 0;
  for (; c + LANES <= call.size; c += LANES) {
    const Lanes x = load(gate + c);
    store(out + c, rounded(x / (1.0f + exp(-x)), gate) * load(up + c));
  }
  for (; c < call.size; c++) {
    T once;
    const float x = load_one(gate + c);
    store_one(&once, x / (1.0f + exp_one(-x)));
    store_one(out + c, load_one(&once) * load_one(up + c));
  }
}

}  // namespace
