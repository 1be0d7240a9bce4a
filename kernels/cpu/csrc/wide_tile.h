// A tile of bf16 widened once for all rows, and their queries with it: RowTile's numbers to the bit.
#pragma once

#include "attention_tile.h"

namespace {

struct WideTile {
  typedef float Query;
  typedef float Weight;
  RowTile<float> wide;
  TileRows<float> rows;
  float *keys, *values, *queries;  // [KEYS, head_dim], [KEYS, v_head_dim], [num_rows, head_dim]

  static bool fits(const AttentionCall& call, int64_t num_rows) {
    return call.head_dim % (2 * LANES) == 0 && num_rows > TILE;
  }

  // scratch: as attention_scratch says
  WideTile(const AttentionCall& call, float* scratch) : wide(call, nullptr), keys(scratch) {
    values = keys + KEYS * call.head_dim;
    queries = values + KEYS * call.v_head_dim;
  }

  const float* query(int64_t row, const bf16* from) const {
    float* to = queries + row * wide.call.head_dim;
    widen_pairs(from, to);
    return to;
  }

  void place(const TileRows<bf16>& there) {
    const AttentionCall& call = wide.call;
    rows.begin = there.begin;
    rows.end = there.end;
    for (int64_t k = there.begin; k < there.end; k++) {
      float *key = keys + k * call.head_dim, *value = values + k * call.v_head_dim;
      widen_pairs(there.keys[k], key);
      int64_t d = 0;
      for (; d + LANES <= call.v_head_dim; d += LANES) store(value + d, load(there.values[k] + d));
      for (; d < call.v_head_dim; d++) value[d] = load_one(there.values[k] + d);
      rows.keys[k] = key;
      rows.values[k] = value;
    }
    wide.place(rows);
  }

  void scores(const float* const* queries, int64_t num_rows, float* out) const { wide.scores(queries, num_rows, out); }

  void mix(float* const* outputs, int64_t num_rows, const Weight* weights, const float* factors) const {
    wide.mix(outputs, num_rows, weights, factors);
  }

 private:
  // In the order in which a dot product of bf16 takes them.
  void widen_pairs(const bf16* from, float* to) const {
    for (int64_t d = 0; d < wide.call.head_dim; d += 2 * LANES) {
      Lanes pairs[2];
      load_pairs(from + d, pairs);
      store(to + d, pairs[0]);
      store(to + d + LANES, pairs[1]);
    }
  }
};

}  // namespace
