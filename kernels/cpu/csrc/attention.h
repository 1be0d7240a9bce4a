// o[t] = softmax(scaling · q[t] Kᵀ + mask) V        over the blocks of t's sequence, up to t
//
// One pass over the keys in steps of KEYS (online softmax, https://arxiv.org/abs/1805.02867). The
// rows of a unit are its queries times the query heads of one KV head, so each key is read once
// for all of them. Steps begin at multiples of KEYS: chunking a prompt changes no number.
#pragma once

#include "calls.h"
#include "rows.h"

namespace {

template <class T>
void write_token(const AttentionCall& call, int64_t token) {
  const int64_t row = call.rows[token];
  for (int64_t head = 0; head < call.kv_heads; head++) {
    const T* key = static_cast<const T*>(call.key) + token * call.key_token + head * call.key_head;
    const T* value = static_cast<const T*>(call.value) + token * call.value_token + head * call.value_head;
    memcpy(static_cast<T*>(call.k_cache) + (row * call.kv_heads + head) * call.head_dim, key,
           call.head_dim * sizeof(T));
    memcpy(static_cast<T*>(call.v_cache) + (row * call.kv_heads + head) * call.v_head_dim, value,
           call.v_head_dim * sizeof(T));
  }
}

// Heads of a token lie beside each other, so a head's keys are too far apart for the machine to foresee.
template <class T>
inline void fetch(const T* row, int64_t length) {
  for (int64_t byte = 0; byte < length * int64_t(sizeof(T)); byte += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(row) + byte);
}

const float HIDDEN = -1e30f;  // a maximum that no score has: nothing was seen yet
const float MASKED = -1e38f;

inline Lanes tanh(Lanes x) { return 1.0f - 2.0f / (exp(2.0f * x) + 1.0f); }

// What a row may see of a tile: keys [begin, end) of KEYS.
struct Seen {
  int32_t begin, end;

  Seen(const AttentionCall& call, int64_t first_key, int64_t num_keys, int64_t position) {
    const int64_t last = position + 1 - first_key < num_keys ? position + 1 - first_key : num_keys;
    const int64_t first = call.window ? position - call.window + 1 - first_key : 0;
    begin = int32_t(first < 0 ? 0 : first > KEYS ? KEYS : first);
    end = int32_t(last < 0 ? 0 : last);
  }

  inline Lanes masked(Lanes scores, const IntLanes& keys) const {
    return (keys >= begin) & (keys < end) ? scores : broadcast(MASKED);
  }
};

// Scores of one row become weights; returns the factor for what was summed before.
inline float soften(const AttentionCall& call, float* scores, const Seen& seen, float& maximum, float& total) {
  const float scaling = float(call.scaling), softcap = float(call.softcap);
  IntLanes keys;
  for (int32_t lane = 0; lane < LANES; lane++) keys[lane] = lane;
  Lanes largest = broadcast(maximum), parts[KEYS / LANES];
  for (int64_t i = 0; i < KEYS / LANES; i++, keys += LANES) {
    Lanes part = load(scores + i * LANES) * scaling;
    if (softcap != 0) part = softcap * tanh(part / softcap);
    parts[i] = seen.masked(part, keys);
    largest = parts[i] > largest ? parts[i] : largest;
  }
  const float before = maximum;
  maximum = max(largest);
  Lanes sums{};
  for (int64_t i = 0; i < KEYS / LANES; i++) {
    const Lanes weights = exp(parts[i] - maximum);
    store(scores + i * LANES, weights);
    sums += weights;
  }
  const float factor = before == maximum ? 1.0f : exp_one(before - maximum);
  total = total * factor + sum(sums);
  return factor;
}

// scratch: 2 * rows addresses, then rows * (KEYS + v_head_dim + 2) floats; rows = length * group
template <class T>
void attend_unit(const AttentionCall& call, const AttentionUnit& unit, float* scratch) {
  const AttentionChunk& chunk = call.chunks[unit.chunk];
  const int64_t group = call.num_heads / call.kv_heads, num_rows = unit.length * group;
  const T** queries = reinterpret_cast<const T**>(scratch);
  float** outputs = reinterpret_cast<float**>(scratch + num_rows * FLOATS_PER_ADDRESS);
  float* scores = scratch + 2 * num_rows * FLOATS_PER_ADDRESS;
  float* sums = scores + num_rows * KEYS;
  float* maxima = sums + num_rows * call.v_head_dim;
  float* totals = maxima + num_rows;
  for (int64_t r = 0; r < num_rows; r++) {
    const int64_t token = chunk.first_row + unit.first + r / group, head = unit.kv_head * group + r % group;
    queries[r] = static_cast<const T*>(call.query) + token * call.query_token + head * call.query_head;
    outputs[r] = sums + r * call.v_head_dim;
    maxima[r] = call.sinks ? static_cast<const float*>(call.sinks)[head] : HIDDEN;
    totals[r] = call.sinks ? 1.0f : 0.0f;
  }
  memset(sums, 0, num_rows * call.v_head_dim * sizeof(float));

  const int64_t first = chunk.past + unit.first, context = first + unit.length;
  const int64_t seen = call.window && first >= call.window ? first - call.window + 1 : 0;
  const T *keys[KEYS], *values[KEYS];
  for (int64_t tile = seen / KEYS * KEYS; tile < context; tile += KEYS) {
    // Nothing before the window is read: its blocks may belong to someone else by now.
    const int64_t begin = tile < seen ? seen : tile;
    const int64_t num_keys = (tile + KEYS < context ? tile + KEYS : context) - begin, skipped = begin - tile;
    int64_t block = begin / call.block_size, place = begin % call.block_size;
    for (int64_t k = 0; k < num_keys; k++) {
      const int64_t row = (chunk.blocks[block] * call.block_size + place) * call.kv_heads + unit.kv_head;
      keys[k] = static_cast<const T*>(call.k_cache) + row * call.head_dim;
      values[k] = static_cast<const T*>(call.v_cache) + row * call.v_head_dim;
      fetch(keys[k], call.head_dim);
      fetch(values[k], call.v_head_dim);
      if (++place == call.block_size) {
        place = 0;
        block++;
      }
    }
    dots(queries, num_rows, keys, num_keys, call.head_dim, scores + skipped, KEYS);
    for (int64_t r = 0; r < num_rows; r++) {
      float* row_scores = scores + r * KEYS;
      const Seen seen(call, tile, skipped + num_keys, first + r / group);
      const float factor = soften(call, row_scores, seen, maxima[r], totals[r]);
      if (factor != 1.0f)
        for (int64_t d = 0; d < call.v_head_dim; d++) outputs[r][d] *= factor;
    }
    mix(outputs, num_rows, scores + skipped, KEYS, values, num_keys, call.v_head_dim);
  }
  for (int64_t r = 0; r < num_rows; r++) {
    const int64_t token = chunk.first_row + unit.first + r / group, head = unit.kv_head * group + r % group;
    T* out = static_cast<T*>(call.out) + (token * call.num_heads + head) * call.v_head_dim;
    const float inverse = 1.0f / totals[r];
    int64_t d = 0;
    for (; d + LANES <= call.v_head_dim; d += LANES) store(out + d, load(outputs[r] + d) * inverse);
    for (; d < call.v_head_dim; d++) store_one(out + d, outputs[r][d] * inverse);
  }
}

}  // namespace
