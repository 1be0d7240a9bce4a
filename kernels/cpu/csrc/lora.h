// y[t, columns_i] = y · scale + shift + (x[t] @ A_i[slot]ᵀ) @ B_i[slot]      for up to LORA_TOKENS tokens of one slot
//
// Shrink and expand in one go: h stays in the first caches, in fp32, and y is rounded once. Rows of
// the pool are found by page, so contiguous and scattered pages are one path. With many adapters
// in a step the weights come from memory, each once: they are read in the order they lie in, and the
// next of them are asked for before those at hand are computed.
#pragma once

#include "calls.h"
#include "rows.h"

namespace {

const int64_t COLUMNS = 128;  // of the expand at a time: the unit's tokens share them in the first cache

inline int64_t pool_row(const LoraTile& tile, int64_t rank_row) {
  return tile.pages[rank_row / PAGE_ROWS] * PAGE_ROWS + rank_row % PAGE_ROWS;
}

template <class W>
inline void prefetch(const W* from, int64_t count) {
  const char *line = reinterpret_cast<const char*>(from), *end = reinterpret_cast<const char*>(from + count);
  for (; line < end; line += 64) __builtin_prefetch(line);
}

// One tile of tokens with its weights: addresses of x and y by token, of A and B by rank row.
template <class X, class W>
struct LoraRows {
  const LoraCall& call;
  const LoraTile& tile;
  const int64_t* ranks;  // of the module's slices
  int64_t num_tokens, rank;  // the largest of the ranks
  const X* x[LORA_TOKENS];
  X* y[LORA_TOKENS];
  const W** b;
  float* hidden;  // [num_tokens, num_slices, max_rank]

  const W* a(int64_t row, int64_t slice) const {
    const int64_t place = pool_row(tile, row) * call.num_slices + slice;
    return static_cast<const W*>(call.a) + place * call.in_features;
  }
  float* hidden_of(int64_t slice) const { return hidden + slice * call.max_rank; }
  int64_t hidden_stride() const { return call.num_slices * call.max_rank; }
};

template <class X, class W>
inline void lora_shrink(const LoraRows<X, W>& rows) {
  const LoraCall& call = rows.call;
  for (int64_t j = 0; j < rows.rank; j += TILE)
    for (int64_t i = 0; i < call.num_slices; i++) {
      const W* a[TILE];
      const int64_t left = rows.ranks[i] - j, count = left < TILE ? left : TILE;
      for (int64_t k = 0; k < count; k++) a[k] = rows.a(j + k, i);
      for (int64_t k = TILE; k < 2 * TILE && k < left; k++) prefetch(rows.a(j + k, i), call.in_features);
      if (j + TILE >= rows.rank)
        for (int64_t k = 0; k < rows.ranks[i]; k++) prefetch(rows.b[k] + call.columns[i], COLUMNS);
      if (count > 0)
        dots(rows.x, rows.num_tokens, a, count, call.in_features, rows.hidden_of(i) + j, rows.hidden_stride());
    }
}

template <class X, class W>
inline void lora_expand(const LoraRows<X, W>& rows) {
  const LoraCall& call = rows.call;
  for (int64_t i = 0; i < call.num_slices; i++) {
    const int64_t rank = rows.ranks[i], end = call.columns[i + 1];
    if (rank == 0) continue;
    for (int64_t c = call.columns[i]; c < end; c += COLUMNS) {
      const int64_t stop = c + COLUMNS < end ? c + COLUMNS : end;
      const int64_t ahead = stop + COLUMNS < end ? COLUMNS : end - stop;
      for (int64_t k = 0; k < rank; k++) prefetch(rows.b[k] + stop, ahead);
      mix(rows.y, rows.num_tokens, rows.hidden_of(i), rows.hidden_stride(), rows.b, rank, stop, c);
    }
  }
}

// y = y * scale + shift, rounded: what DoRA and biases of an adapter's own do to the base's output
template <class X>
inline void scale_and_shift(X* y, const float* scale, const float* shift, int64_t size) {
  int64_t c = 0;
  for (; c + LANES <= size; c += LANES) {
    Lanes value = load(y + c);
    if (scale) value = value * load(scale + c);
    if (shift) value = value + load(shift + c);
    store(y + c, value);
  }
  for (; c < size; c++) {
    float value = load_one(y + c);
    if (scale) value *= scale[c];
    if (shift) value += shift[c];
    store_one(y + c, value);
  }
}

// scratch: as many floats as lora_scratch says
template <class X, class W>
void lora_unit(const LoraCall& call, const LoraUnit& unit, float* scratch) {
  const LoraTile& tile = call.tiles[unit.tile];
  LoraRows<X, W> rows = {call, tile, tile.ranks + call.module * call.ranks_stride, unit.length};
  for (int64_t i = 0; i < call.num_slices; i++)
    if (rows.ranks[i] > rows.rank) rows.rank = rows.ranks[i];
  const int64_t* order = call.order + tile.start + unit.first;
  for (int64_t t = 0; t < unit.length; t++) {
    rows.x[t] = static_cast<const X*>(call.x) + order[t] * call.x_stride;
    rows.y[t] = static_cast<X*>(call.out) + order[t] * call.out_stride;
  }
  if (tile.affines) {
    const int64_t* affine = tile.affines + 2 * call.module;
    const float *scale = reinterpret_cast<const float*>(affine[0]), *shift = reinterpret_cast<const float*>(affine[1]);
    if (scale || shift)
      for (int64_t t = 0; t < unit.length; t++) scale_and_shift(rows.y[t], scale, shift, call.out_features);
  }
  if (rows.rank == 0) return;
  rows.b = reinterpret_cast<const W**>(scratch);
  rows.hidden = scratch + call.max_rank * FLOATS_PER_ADDRESS;
  for (int64_t j = 0; j < rows.rank; j++)
    rows.b[j] = static_cast<const W*>(call.b) + pool_row(tile, j) * call.out_features;
  lora_shrink(rows);
  lora_expand(rows);
}

}  // namespace
