// y[t, columns_i] = y · scale + shift + (x[t] @ A_i[slot]ᵀ) @ B_i[slot]      for up to LORA_TOKENS tokens of one slot
//
// Two halves, because the first needs no y: whoever computes y by a product does the shrinks between its panels.
// What is between them, h, is in fp32, and y is rounded once. Rows of the pool are found by page, so contiguous and
// scattered pages are one path. With many adapters in a step the weights come from memory, each once: they are read
// in the order they lie in, and the next of them are asked for before those at hand are computed.
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

// A unit's tokens and the weights of their slot.
template <class X, class W>
struct LoraRows {
  const LoraCall& call;
  const LoraUnit& unit;
  const LoraTile& tile;
  const int64_t* ranks;  // of the module's slices
  const int64_t rank;    // the largest of them

  LoraRows(const LoraCall& call, const LoraUnit& unit)
      : call(call),
        unit(unit),
        tile(call.tiles[unit.tile]),
        ranks(tile.ranks + call.module * call.ranks_stride),
        rank(largest_rank(call, tile)) {}

  int64_t token(int64_t t) const { return call.order[tile.start + unit.first + t]; }
  const X* x(int64_t t) const { return static_cast<const X*>(call.x) + token(t) * call.x_stride; }
  X* y(int64_t t) const { return static_cast<X*>(call.out) + token(t) * call.out_stride; }

  const W* a(int64_t row, int64_t slice) const {
    const int64_t place = pool_row(tile, row) * call.num_slices + slice;
    return static_cast<const W*>(call.a) + place * call.in_features;
  }
  const W* b(int64_t row) const { return static_cast<const W*>(call.b) + pool_row(tile, row) * call.out_features; }

  int64_t hidden_stride() const { return call.num_slices * call.max_rank; }
};

// hidden [unit.length, num_slices, max_rank]
template <class X, class W>
void lora_shrink(const LoraCall& call, const LoraUnit& unit, float* hidden) {
  const LoraRows<X, W> rows(call, unit);
  const X* x[LORA_TOKENS];
  for (int64_t t = 0; t < unit.length; t++) x[t] = rows.x(t);
  for (int64_t j = 0; j < rows.rank; j += TILE)
    for (int64_t i = 0; i < call.num_slices; i++) {
      const W* a[TILE];
      const int64_t left = rows.ranks[i] - j, count = left < TILE ? left : TILE;
      for (int64_t k = 0; k < count; k++) a[k] = rows.a(j + k, i);
      for (int64_t k = TILE; k < 2 * TILE && k < left; k++) prefetch(rows.a(j + k, i), call.in_features);
      if (count > 0)
        dots(x, unit.length, a, count, call.in_features, hidden + i * call.max_rank + j, rows.hidden_stride());
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

template <class X, class W>
inline void change_columns(const LoraRows<X, W>& rows, X* const* y) {
  if (!rows.tile.affines) return;
  const int64_t* affine = rows.tile.affines + 2 * rows.call.module;
  const float *scale = reinterpret_cast<const float*>(affine[0]), *shift = reinterpret_cast<const float*>(affine[1]);
  if (scale || shift)
    for (int64_t t = 0; t < rows.unit.length; t++) scale_and_shift(y[t], scale, shift, rows.call.out_features);
}

// hidden: as lora_shrink left it; scratch: as many floats as expand_scratch says
template <class X, class W>
void lora_expand(const LoraCall& call, const LoraUnit& unit, const float* hidden, float* scratch) {
  const LoraRows<X, W> rows(call, unit);
  X* y[LORA_TOKENS];
  for (int64_t t = 0; t < unit.length; t++) y[t] = rows.y(t);
  change_columns(rows, y);
  const W** b = reinterpret_cast<const W**>(scratch);
  for (int64_t j = 0; j < rows.rank; j++) prefetch(b[j] = rows.b(j), COLUMNS);
  for (int64_t i = 0; i < call.num_slices; i++) {
    const int64_t rank = rows.ranks[i], end = call.columns[i + 1];
    if (rank == 0) continue;
    for (int64_t c = call.columns[i]; c < end; c += COLUMNS) {
      const int64_t stop = c + COLUMNS < end ? c + COLUMNS : end;
      const int64_t ahead = stop + COLUMNS < end ? COLUMNS : end - stop;
      for (int64_t k = 0; k < rank; k++) prefetch(b[k] + stop, ahead);
      mix(y, unit.length, hidden + i * call.max_rank, rows.hidden_stride(), b, rank, stop, c);
    }
  }
}

}  // namespace
