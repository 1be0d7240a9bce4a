// y = x Wᵀ + bias        by panels of PANEL columns that were packed once, a panel at a time
//
//   bf16   [panel][in / 2][PANEL][2]    pairs of inputs lie together, as the dot products of bf16 want them
//   fp32   [panel][in][PANEL]
//
// Missing columns and an odd last input are packed as zeros. Every sum is in fp32 and runs over the
// inputs from front to back, so a token's numbers are the same in every batch and with any threads.
// With many rows it is the arithmetic that takes the time, so meanwhile memory is asked for what the
// phases after it will read.
#pragma once

#include "calls.h"
#include "lanes.h"

namespace {

const int VECTORS = PANEL / LANES;  // of a panel's row
// Rows whose sums, VECTORS each, fit into the registers together.
const int64_t GEMM_ROWS = LANES == 16 ? 12 : LANES == 8 ? 3 : 1;

// One step of the sum: what a row's next inputs add to a panel's columns.
template <class T>
struct Step;

template <>
struct Step<float> {
  static const int INPUTS = 1;
  static inline int64_t count(int64_t in) { return in; }
  static inline void load_weights(const float* w, Lanes* to) {
    for (int v = 0; v < VECTORS; v++) to[v] = load(w + v * LANES);
  }
  static const int PARTS = VECTORS;
  static inline void add(const float* x, const Lanes* w, Lanes* sums) {
    const Lanes value = broadcast(*x);
    for (int v = 0; v < VECTORS; v++) sums[v] = value * w[v] + sums[v];
  }
};

#if defined(__AVX512BF16__)
template <>
struct Step<bf16> {
  static const int INPUTS = 2;
  static inline int64_t count(int64_t in) { return in / 2; }
  static const int PARTS = VECTORS;
  static inline void load_weights(const bf16* w, Lanes* to) {
    for (int v = 0; v < VECTORS; v++) memcpy(&to[v], w + v * 2 * LANES, sizeof(Lanes));
  }
  static inline void add(const bf16* x, const Lanes* w, Lanes* sums) {
    int32_t pair;
    memcpy(&pair, x, sizeof(pair));
    const __m512bh value = (__m512bh)_mm512_set1_epi32(pair);
    for (int v = 0; v < VECTORS; v++)
      sums[v] = (Lanes)_mm512_dpbf16_ps((__m512)sums[v], value, (__m512bh)w[v]);
  }
};
#else
template <>
struct Step<bf16> {
  static const int INPUTS = 2;
  static inline int64_t count(int64_t in) { return in / 2; }
  static const int PARTS = 2 * VECTORS;  // first inputs, then second ones
  static inline void load_weights(const bf16* w, Lanes* to) {
    for (int v = 0; v < VECTORS; v++) {
      WordLanes pairs;
      memcpy(&pairs, w + v * 2 * LANES, sizeof(pairs));
      to[v] = bit_cast<Lanes>(pairs << 16);
      to[VECTORS + v] = bit_cast<Lanes>(pairs & 0xffff0000u);
    }
  }
  static inline void add(const bf16* x, const Lanes* w, Lanes* sums) {
    const Lanes first = broadcast(load_one(x)), second = broadcast(load_one(x + 1));
    for (int v = 0; v < VECTORS; v++) sums[v] = first * w[v] + sums[v];
    for (int v = 0; v < VECTORS; v++) sums[v] = second * w[VECTORS + v] + sums[v];
  }
};
#endif

const int64_t AHEAD_LINES = 16;  // asked for together, one a step

// Lines to ask for during the next steps; when all are under way, some that are at hand.
inline const char* take_lines(Ahead& ahead, const void* at_hand) {
  if (ahead.run == ahead.end) return static_cast<const char*>(at_hand);
  const char* lines = ahead.run->begin + ahead.line * LINE_BYTES;
  ahead.line += AHEAD_LINES;
  if (ahead.line >= ahead.run->lines) {
    ahead.run++;
    ahead.line = 0;
  }
  return lines;
}

template <int ROWS, class T>
inline void gemm_rows(const GemmCall& call, const T* panel, int64_t first_row, int64_t column, Ahead& ahead) {
  const T* x[ROWS];
  for (int r = 0; r < ROWS; r++) x[r] = static_cast<const T*>(call.x) + (first_row + r) * call.x_stride;
  Lanes sums[ROWS][VECTORS] = {};
  const int64_t steps = Step<T>::count(call.in_features);
  for (int64_t s = 0; s < steps;) {
    const int64_t stop = s + AHEAD_LINES < steps ? s + AHEAD_LINES : steps;
    for (const char* line = take_lines(ahead, panel); s < stop; s++, line += LINE_BYTES) {
      __builtin_prefetch(line, 0, 2);
      Lanes w[Step<T>::PARTS];
      Step<T>::load_weights(panel + s * Step<T>::INPUTS * PANEL, w);
#pragma GCC unroll 16
      for (int r = 0; r < ROWS; r++) Step<T>::add(x[r] + s * Step<T>::INPUTS, w, sums[r]);
    }
  }
  if (steps * Step<T>::INPUTS < call.in_features) {  // an odd last input
    Lanes w[Step<T>::PARTS];
    Step<T>::load_weights(panel + steps * Step<T>::INPUTS * PANEL, w);
    for (int r = 0; r < ROWS; r++) {
      T last[2] = {x[r][call.in_features - 1], T{}};
      Step<T>::add(last, w, sums[r]);
    }
  }
  const int64_t columns = call.out_features - column < PANEL ? call.out_features - column : PANEL;
  for (int r = 0; r < ROWS; r++) {
    T* y = static_cast<T*>(call.out) + (first_row + r) * call.out_stride + column;
    float ends[PANEL];
    for (int v = 0; v < VECTORS; v++) {
      if (call.bias) sums[r][v] += load(static_cast<const float*>(call.bias) + column + v * LANES);
      if ((v + 1) * LANES <= columns)
        store(y + v * LANES, sums[r][v]);
      else
        store(ends + v * LANES, sums[r][v]);
    }
    for (int64_t c = columns / LANES * LANES; c < columns; c++) store_one(y + c, ends[c]);
  }
}

// `rows`, at most ROWS, of them.
template <int ROWS, class T>
inline void gemm_block(int64_t rows, const GemmCall& call, const T* panel, int64_t first_row, int64_t column,
                       Ahead& ahead) {
  if constexpr (ROWS > 1)
    if (rows < ROWS) return gemm_block<ROWS - 1>(rows, call, panel, first_row, column, ahead);
  gemm_rows<ROWS>(call, panel, first_row, column, ahead);
}

// Rows [first_row, first_row + num_rows) of the columns of one panel.
template <class T>
void gemm_panel(const GemmCall& call, int64_t panel, int64_t first_row, int64_t num_rows, Ahead& ahead) {
  const int64_t width = (call.in_features + Step<T>::INPUTS - 1) / Step<T>::INPUTS * Step<T>::INPUTS * PANEL;
  const T* weights = static_cast<const T*>(call.weights) + panel * width;
  const int64_t column = panel * PANEL, end = first_row + num_rows;
  // Row blocks of nearly the same height: 16 rows are 8 + 8, not 12 + 4.
  int64_t blocks = (num_rows + GEMM_ROWS - 1) / GEMM_ROWS;
  for (int64_t row = first_row; row < end; blocks--) {
    const int64_t rows = (end - row + blocks - 1) / blocks;
    gemm_block<GEMM_ROWS>(rows, call, weights, row, column, ahead);
    row += rows;
  }
}

}  // namespace
