// y[t, columns_i] += (x[t] @ A_i[slot]ᵀ) @ B_i[slot]      for up to LORA_TOKENS tokens of one slot
//
// Shrink and expand in one go: h stays in the first cache, in fp32, and y is rounded once. Rows of
// the pool are found by page, so contiguous and scattered pages are one path.
#pragma once

#include "calls.h"
#include "rows.h"

namespace {

inline int64_t pool_row(const LoraTile& tile, int64_t rank_row) {
  return tile.pages[rank_row / PAGE_ROWS] * PAGE_ROWS + rank_row % PAGE_ROWS;
}

// scratch: max_rank addresses, then LORA_TOKENS * max_rank floats
template <class X, class W>
void lora_unit(const LoraCall& call, const LoraUnit& unit, float* scratch) {
  const LoraTile& tile = call.tiles[unit.tile];
  const int64_t* ranks = tile.ranks + call.module * call.ranks_stride;
  const int64_t* order = call.order + tile.start + unit.first;
  const W** weights = reinterpret_cast<const W**>(scratch);
  float* hidden = scratch + call.max_rank * FLOATS_PER_ADDRESS;
  const X* x[LORA_TOKENS];
  X* y[LORA_TOKENS];
  for (int64_t t = 0; t < unit.length; t++)
    x[t] = static_cast<const X*>(call.x) + order[t] * call.x_stride;
  for (int64_t i = 0; i < call.num_slices; i++) {
    const int64_t rank = ranks[i], column = call.columns[i];
    if (rank == 0) continue;
    for (int64_t j = 0; j < rank; j++)
      weights[j] = static_cast<const W*>(call.a) + (pool_row(tile, j) * call.num_slices + i) * call.in_features;
    dots(x, unit.length, weights, rank, call.in_features, hidden, call.max_rank);
    for (int64_t j = 0; j < rank; j++)
      weights[j] = static_cast<const W*>(call.b) + pool_row(tile, j) * call.out_features + column;
    for (int64_t t = 0; t < unit.length; t++)
      y[t] = static_cast<X*>(call.out) + order[t] * call.out_stride + column;
    mix(y, unit.length, hidden, call.max_rank, weights, rank, call.columns[i + 1] - column);
  }
}

}  // namespace
