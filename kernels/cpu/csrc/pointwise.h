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
inline Lanes rounded(Lanes lanes, const bf16*) { return widened(halves(lanes)); }

// `out` may be `x`.
template <class T>
void normalise(const T* x, const Norm& norm, T* out) {
  const T* weight = static_cast<const T*>(norm.weight);
  Lanes sums{};
  int64_t c = 0;
  for (; c + LANES <= norm.size; c += LANES) sums += load(x + c) * load(x + c);
  float total = sum(sums);
  for (; c < norm.size; c++) total += load_one(x + c) * load_one(x + c);
  const float inverse = 1.0f / __builtin_sqrtf(total / norm.size + float(norm.eps));
  const float offset = float(norm.offset);
  // A weight that is one plus an offset is applied in fp32 (Gemma), any other after rounding (Llama).
  for (c = 0; c + LANES <= norm.size; c += LANES) {
    const Lanes scaled = load(x + c) * inverse;
    store(out + c, (offset == 0 ? rounded(scaled, x) : scaled) * (load(weight + c) + offset));
  }
  for (; c < norm.size; c++) {
    T once;
    float scaled = load_one(x + c) * inverse;
    store_one(&once, scaled);
    if (offset == 0) scaled = load_one(&once);
    store_one(out + c, scaled * (load_one(weight + c) + offset));
  }
}

template <class T>
void norm_row(const NormCall& call, int64_t row) {
  const Norm norm = {call.weight, call.size, call.eps, call.offset};
  normalise(static_cast<const T*>(call.x) + row * call.size, norm, static_cast<T*>(call.out) + row * call.size);
}

inline Lanes activated(Lanes x, int64_t activation) {
  if (activation == SILU) return x / (1.0f + exp(-x));
  // 0.5 x (1 + tanh(u)) = x sigmoid(2 u)
  return x / (1.0f + exp(-1.5957691216057308f * (x + 0.044715f * x * x * x)));
}

// out = round(activation(gate)) * up
template <class T>
void multiply_gates(const T* gate, const T* up, T* out, int64_t size, int64_t activation) {
  int64_t c = 0;
  for (; c + LANES <= size; c += LANES)
    store(out + c, rounded(activated(load(gate + c), activation), gate) * load(up + c));
  for (; c < size; c++) {
    T once;
    store_one(&once, activated(broadcast(load_one(gate + c)), activation)[0]);
    store_one(out + c, load_one(&once) * load_one(up + c));
  }
}

template <class T>
void gate_row(const GateCall& call, int64_t row) {
  multiply_gates(static_cast<const T*>(call.gate) + row * call.gate_stride,
                 static_cast<const T*>(call.up) + row * call.up_stride,
                 static_cast<T*>(call.out) + row * call.size, call.size, SILU);
}

}  // namespace
