// Up to KEYS keys and values of one head, and the two products with them:
//
//   scores   s[i, j] = q_i · k_j              at places of the tile, so that chunking a prompt changes none
//   mix      o_i = o_i · factor_i + sum over j of p[i, j] v_j
//
// RowTile leaves keys and values where they lie. Where an instruction multiplies bf16, PackedTile computes heads whose
// sizes fit it; where none does, WideTile gives RowTile's numbers sooner when there are many rows.
#pragma once

#include "calls.h"
#include "rows.h"

namespace {

// Places [begin, end) of a tile are there; nothing else of it is read.
template <class T>
struct TileRows {
  int64_t begin, end;
  const T *keys[KEYS], *values[KEYS];
};

template <class T>
struct RowTile {
  typedef T Query;
  typedef float Weight;
  const AttentionCall& call;
  const TileRows<T>* rows;

  RowTile(const AttentionCall& call, float*) : call(call) {}

  const T* query(int64_t, const T* from) const { return from; }

  void place(const TileRows<T>& there) { rows = &there; }

  void scores(const T* const* queries, int64_t num_rows, float* out) const {
    dots(queries, num_rows, rows->keys + rows->begin, rows->end - rows->begin, call.head_dim, out + rows->begin, KEYS);
  }

  void mix(float* const* outputs, int64_t num_rows, const Weight* weights, const float* factors) const {
    for (int64_t r = 0; r < num_rows; r++)
      if (factors[r] != 1.0f)
        for (int64_t d = 0; d < call.v_head_dim; d++) outputs[r][d] *= factors[r];
    ::mix(outputs, num_rows, weights + rows->begin, KEYS, rows->values + rows->begin, rows->end - rows->begin,
          call.v_head_dim);
  }
};

}  // namespace
