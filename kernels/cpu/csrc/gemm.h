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

// sums_r += x_r[at] * weight(v) of every vector v
template <int ROWS, class Weight>
inline void add_products(const float* const* x, int64_t at, const Weight& weight, Lanes (*sums)[VECTORS]) {
  if constexpr (LANES == 16) {
    Lanes weights[VECTORS];
    for (int v = 0; v < VECTORS; v++) weights[v] = weight(v);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
      const Lanes value = broadcast(x[r][at]);
      for (int v = 0; v < VECTORS; v++) sums[r][v] = value * weights[v] + sums[r][v];
    }
  } else {  // half the registers: one for the weights, which are met one by one
    Lanes values[ROWS];
    for (int r = 0; r < ROWS; r++) values[r] = broadcast(x[r][at]);
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; v++) {
      const Lanes w = weight(v);
      for (int r = 0; r < ROWS; r++) sums[r][v] = values[r] * w + sums[r][v];
    }
  }
}

// Inputs of a row that are at hand together. Where bf16 has to be widened to be multiplied, it is done once for
// all columns of a panel, and the widened rows stay in the first cache.
const int64_t AT_HAND = 256;

// A step of the sums: what INPUTS inputs of each row add to a panel's columns.
template <class T>
struct Step;

template <>
struct Step<float> {
  static const int INPUTS = 1;
  typedef float Input;
  static inline const float* at_hand(const float* x, int64_t, Input*) { return x; }

  template <int ROWS>
  static inline void add(const Input* const* x, int64_t first, const float* w, Lanes (*sums)[VECTORS]) {
    add_products<ROWS>(x, first, [w](int v) { return load(w + v * LANES); }, sums);
  }
};

#if defined(__AVX512BF16__)
template <>
struct Step<bf16> {
  static const int INPUTS = 2;
  typedef bf16 Input;
  static inline const bf16* at_hand(const bf16* x, int64_t, Input*) { return x; }

  template <int ROWS>
  static inline void add(const Input* const* x, int64_t first, const bf16* w, Lanes (*sums)[VECTORS]) {
    __m512bh weights[VECTORS];
    for (int v = 0; v < VECTORS; v++) memcpy(&weights[v], w + v * 2 * LANES, sizeof(Lanes));
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++) {
      int32_t pair;
      memcpy(&pair, x[r] + first, sizeof(pair));
      const __m512bh value = (__m512bh)_mm512_set1_epi32(pair);
      for (int v = 0; v < VECTORS; v++) sums[r][v] = (Lanes)_mm512_dpbf16_ps((__m512)sums[r][v], value, weights[v]);
    }
  }
};
#else
template <>
struct Step<bf16> {
  static const int INPUTS = 2;
  typedef float Input;

  static inline const float* at_hand(const bf16* x, int64_t count, Input* room) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) store(room + i, load(x + i));
    for (; i < count; i++) room[i] = load_one(x + i);
    return room;
  }

  template <int ROWS>
  static inline void add(const Input* const* x, int64_t first, const bf16* w, Lanes (*sums)[VECTORS]) {
    add_products<ROWS>(x, first, [w](int v) { return bit_cast<Lanes>(pairs(w, v) << 16); }, sums);
    add_products<ROWS>(x, first + 1, [w](int v) { return bit_cast<Lanes>(pairs(w, v) & 0xffff0000u); }, sums);
  }

 private:
  static inline WordLanes pairs(const bf16* w, int v) {
    WordLanes words;
    memcpy(&words, w + v * 2 * LANES, sizeof(words));
    return words;
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

// Weights of the steps that follow, the next panel's at a panel's end. The machine foresees them too, but not far
// enough: without this, 120 linears took 11.6 ms instead of 9.0 for 1 token, 18.4 instead of 13.8 for 8; 1 and 4 KiB
// ahead are worse than 2.
const int64_t WEIGHTS_AHEAD = 2048;  // bytes

template <class T>
inline void ask_for_weights(const T* at_hand, int64_t count) {
  const char* ahead = reinterpret_cast<const char*>(at_hand) + WEIGHTS_AHEAD;
  for (int64_t byte = 0; byte < count * int64_t(sizeof(T)); byte += LINE_BYTES) __builtin_prefetch(ahead + byte);
}

template <int ROWS, class T>
inline void gemm_rows(const GemmCall& call, const T* panel, int64_t first_row, int64_t column, Ahead& ahead) {
  typedef typename Step<T>::Input Input;
  const int64_t INPUTS = Step<T>::INPUTS;
  Lanes sums[ROWS][VECTORS] = {};
  Input room[ROWS][AT_HAND];
  for (int64_t first = 0; first < call.in_features; first += AT_HAND, panel += AT_HAND * PANEL) {
    const int64_t count = call.in_features - first < AT_HAND ? call.in_features - first : AT_HAND;
    const Input* x[ROWS];
    for (int r = 0; r < ROWS; r++)
      x[r] = Step<T>::at_hand(static_cast<const T*>(call.x) + (first_row + r) * call.x_stride + first, count, room[r]);
    const int64_t steps = count / INPUTS;
    for (int64_t s = 0; s < steps;) {
      const int64_t stop = s + AHEAD_LINES < steps ? s + AHEAD_LINES : steps;
      for (const char* line = take_lines(ahead, panel); s < stop; s++, line += LINE_BYTES) {
        __builtin_prefetch(line, 0, 2);
        ask_for_weights(panel + s * INPUTS * PANEL, INPUTS * PANEL);
        Step<T>::template add<ROWS>(x, s * INPUTS, panel + s * INPUTS * PANEL, sums);
      }
    }
    if (steps * INPUTS < count) {  // an odd last input
      Input last[ROWS][2] = {};
      for (int r = 0; r < ROWS; r++) {
        last[r][0] = x[r][count - 1];
        x[r] = last[r];
      }
      Step<T>::template add<ROWS>(x, 0, panel + steps * INPUTS * PANEL, sums);
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
