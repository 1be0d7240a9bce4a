// What a decoder layer does with each token between its products; layer.h says in which order.
#pragma once

#include "calls.h"
#include "pointwise.h"

namespace {

template <class T>
inline T* row_of(void* base, int64_t row, int64_t size) {
  return static_cast<T*>(base) + row * size;
}

template <class T>
inline const T* row_of(const void* base, int64_t row, int64_t size) {
  return static_cast<const T*>(base) + row * size;
}

// What the first half reads: the stream, normalised when the layer begins with a norm.
template <class T>
void before_attention_row(const LayerCall& call, int64_t row) {
  if (call.before_attention.weight)
    normalise(row_of<T>(call.x, row, call.hidden), call.before_attention, row_of<T>(call.normed, row, call.hidden));
}

// x[d] cos[d] - x[d + half] sin[d] and x[d + half] cos[d + half] + x[d] sin[d + half], as GPT-NeoX pairs them
template <class T>
inline void rotate_head(T* x, const T* cos, const T* sin, int64_t rotary_dim) {
  const int64_t half = rotary_dim / 2;
  int64_t d = 0;
  for (; d + LANES <= half; d += LANES) {
    const Lanes first = load(x + d), second = load(x + half + d);
    store(x + d, first * load(cos + d) - second * load(sin + d));
    store(x + half + d, second * load(cos + half + d) + first * load(sin + half + d));
  }
  for (; d < half; d++) {
    const float first = load_one(x + d), second = load_one(x + half + d);
    store_one(x + d, first * load_one(cos + d) - second * load_one(sin + d));
    store_one(x + half + d, second * load_one(cos + half + d) + first * load_one(sin + half + d));
  }
}

template <class T>
inline void rotate_heads(const LayerCall& call, T* heads, int64_t num_heads, const Norm& norm, int64_t row) {
  const int64_t size = call.attention.head_dim;
  if (norm.weight)
    for (int64_t at = 0; at < num_heads * size; at += norm.size) normalise(heads + at, norm, heads + at);
  if (call.cos)
    for (int64_t head = 0; head < num_heads; head++)
      rotate_head(heads + head * size, row_of<T>(call.cos, row, call.rotary_dim),
                  row_of<T>(call.sin, row, call.rotary_dim), call.rotary_dim);
}

template <class T>
void rotate_row(const LayerCall& call, int64_t row) {
  const AttentionCall& attention = call.attention;
  T* query = row_of<T>(call.qkv.out, row, call.qkv.out_stride);
  rotate_heads(call, query, attention.num_heads, call.query_norm, row);
  rotate_heads(call, query + attention.num_heads * attention.head_dim, attention.kv_heads, call.key_norm, row);
}

// out = x + residual * norm(added); `added` is overwritten
template <class T>
inline void add_to_stream(const LayerCall& call, const void* x, const Norm& norm, int64_t row) {
  T* added = row_of<T>(call.added, row, call.hidden);
  if (norm.weight) normalise(added, norm, added);
  const T* before = row_of<T>(x, row, call.hidden);
  T* out = row_of<T>(call.out, row, call.hidden);
  const float factor = float(call.residual);
  int64_t c = 0;
  for (; c + LANES <= call.hidden; c += LANES) {
    const Lanes value = load(added + c);
    store(out + c, load(before + c) + (factor == 1 ? value : rounded(value * factor, added)));
  }
  for (; c < call.hidden; c++) store_one(out + c, load_one(before + c) + load_one(added + c) * factor);
}

// The first half joins the stream; what the second half reads.
template <class T>
void between_row(const LayerCall& call, int64_t row) {
  add_to_stream<T>(call, call.x, call.after_attention, row);
  if (call.before_mlp.weight)
    normalise(row_of<T>(static_cast<const void*>(call.out), row, call.hidden), call.before_mlp,
              row_of<T>(call.normed, row, call.hidden));
}

template <class T>
void activate_row(const LayerCall& call, int64_t row) {
  const T* gate = row_of<T>(static_cast<const void*>(call.gate_up.out), row, call.gate_up.out_stride);
  const int64_t size = call.down.in_features;
  multiply_gates(gate, gate + size, static_cast<T*>(const_cast<void*>(call.down.x)) + row * call.down.x_stride,
                 size, call.activation);
}

template <class T>
void end_row(const LayerCall& call, int64_t row) {
  add_to_stream<T>(call, call.out, call.after_mlp, row);
}

}  // namespace
