// The two products that everything here is made of, on rows that may lie anywhere:
//
//   dots   out[i, j] = x_i · w_j                     LoRA's shrink, attention's scores
//   mix    y_i += sum over j of h[i, j] w_j          LoRA's expand, attention's values
//
// Sums are in fp32 and their order depends on the lengths alone, never on how many rows are
// computed together: a token's numbers are the same in every batch.
#pragma once

#include "lanes.h"

namespace {

const int TILE = 4;  // rows by rows in registers: 16 sums, 8 loads a step

template <class X, class W>
struct Dot {
  static const int STEP = LANES;
  static inline Lanes add(const X* x, const W* w, Lanes sum) { return load(x) * load(w) + sum; }
};

// 2 * LANES numbers of bf16 as those at even and those at odd places: half the instructions of the first and the last.
inline void load_pairs(const bf16* from, Lanes* to) {
  WordLanes words;
  memcpy(&words, from, sizeof(words));
  to[0] = bit_cast<Lanes>(words << 16);
  to[1] = bit_cast<Lanes>(words & 0xffff0000u);
}

template <>
struct Dot<bf16, bf16> {
  static const int STEP = 2 * LANES;
#if defined(__AVX512BF16__)
  static inline Lanes add(const bf16* x, const bf16* w, Lanes sum) {
    return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_loadu_si512(x),
                                   (__m512bh)_mm512_loadu_si512(w));
  }
#else
  static inline Lanes add(const bf16* x, const bf16* w, Lanes sum) {
    Lanes xs[2], ws[2];
    load_pairs(x, xs);
    load_pairs(w, ws);
    return xs[1] * ws[1] + (xs[0] * ws[0] + sum);
  }
#endif
};

template <int NX, int NW, class X, class W>
inline void dots_tile(const X* const* x, const W* const* w, int64_t length, float* out, int64_t out_stride) {
  Lanes sums[NX][TILE] = {};
  int64_t c = 0;
  for (; c + Dot<X, W>::STEP <= length; c += Dot<X, W>::STEP)
    for (int i = 0; i < NX; i++)
      for (int j = 0; j < NW; j++) sums[i][j] = Dot<X, W>::add(x[i] + c, w[j] + c, sums[i][j]);
  if (NX == TILE && NW == TILE && c == length) return sum16(sums, out, out_stride);
  for (int i = 0; i < NX; i++) {
    float totals[TILE];
    sum4(sums[i], totals);
    for (int j = 0; j < NW; j++) {
      float total = totals[j];
      for (int64_t d = c; d < length; d++) total += load_one(x[i] + d) * load_one(w[j] + d);
      out[i * out_stride + j] = total;
    }
  }
}

template <int NX, class X, class W>
inline void dots_rows(const X* const* x, const W* const* w, int64_t num_w, int64_t length, float* out,
                      int64_t out_stride) {
  switch (num_w) {
    case 1: return dots_tile<NX, 1>(x, w, length, out, out_stride);
    case 2: return dots_tile<NX, 2>(x, w, length, out, out_stride);
    case 3: return dots_tile<NX, 3>(x, w, length, out, out_stride);
    default: return dots_tile<NX, 4>(x, w, length, out, out_stride);
  }
}

// x [num_x] rows, w [num_w] rows, all of `length` numbers → out[i * out_stride + j]
template <class X, class W>
void dots(const X* const* x, int64_t num_x, const W* const* w, int64_t num_w, int64_t length, float* out,
          int64_t out_stride) {
  for (int64_t j = 0; j < num_w; j += TILE) {
    const int64_t nw = num_w - j < TILE ? num_w - j : TILE;
    for (int64_t i = 0; i < num_x; i += TILE) {
      float* to = out + i * out_stride + j;
      switch (num_x - i) {
        case 1: dots_rows<1>(x + i, w + j, nw, length, to, out_stride); break;
        case 2: dots_rows<2>(x + i, w + j, nw, length, to, out_stride); break;
        case 3: dots_rows<3>(x + i, w + j, nw, length, to, out_stride); break;
        default: dots_rows<4>(x + i, w + j, nw, length, to, out_stride);
      }
    }
  }
}

// 2 * LANES columns as two vectors: the first and the last, or, where all is bf16, those at even and at
// odd places, which takes half the instructions.
template <class Y, class W>
struct Pair {
  template <class T>
  static inline void load(const T* from, Lanes* to) {
    to[0] = ::load(from);
    to[1] = ::load(from + LANES);
  }
  static inline void store(Y* to, const Lanes* from) {
    ::store(to, from[0]);
    ::store(to + LANES, from[1]);
  }
};

template <>
struct Pair<bf16, bf16> {
  static inline void load(const bf16* from, Lanes* to) { load_pairs(from, to); }
  static inline void store(bf16* to, const Lanes* from) {
#if defined(__AVX512BF16__)
    const __m512i places = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23,
                                            7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)from[1], (__m512)from[0]);
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(places, halves));
#else
    const WordLanes words = __builtin_convertvector(halves(from[0]), WordLanes) |
                            __builtin_convertvector(halves(from[1]), WordLanes) << 16;
    memcpy(to, &words, sizeof(words));
#endif
  }
};

template <int NY, int PAIRS, class Y, class W>
inline void mix_pairs(Y* const* y, const float* h, int64_t h_stride, const W* const* w, int64_t num_w,
                      int64_t column) {
  const int NV = 2 * PAIRS;
  Lanes sums[NY][NV];
  for (int i = 0; i < NY; i++)
    for (int v = 0; v < NV; v += 2) Pair<Y, W>::load(y[i] + column + v * LANES, sums[i] + v);
  for (int64_t j = 0; j < num_w; j++) {
    Lanes row[NV];
    for (int v = 0; v < NV; v += 2) Pair<Y, W>::load(w[j] + column + v * LANES, row + v);
    for (int i = 0; i < NY; i++) {
      const Lanes factor = broadcast(h[i * h_stride + j]);
      for (int v = 0; v < NV; v++) sums[i][v] = row[v] * factor + sums[i][v];
    }
  }
  for (int i = 0; i < NY; i++)
    for (int v = 0; v < NV; v += 2) Pair<Y, W>::store(y[i] + column + v * LANES, sums[i] + v);
}

template <int NY, class Y, class W>
inline void mix_lanes(Y* const* y, const float* h, int64_t h_stride, const W* const* w, int64_t num_w,
                      int64_t column) {
  Lanes sums[NY];
  for (int i = 0; i < NY; i++) sums[i] = load(y[i] + column);
  for (int64_t j = 0; j < num_w; j++) {
    const Lanes row = load(w[j] + column);
    for (int i = 0; i < NY; i++) sums[i] = row * h[i * h_stride + j] + sums[i];
  }
  for (int i = 0; i < NY; i++) store(y[i] + column, sums[i]);
}

template <int NY, class Y, class W>
inline void mix_rows(Y* const* y, const float* h, int64_t h_stride, const W* const* w, int64_t num_w,
                     int64_t first, int64_t end) {
  // One row alone waits for its own sums: more columns at once keep the units busy. With fewer than
  // AVX-512's 32 registers half as many stay in them.
  const int PAIRS = (NY == 1 ? 4 : 2) / (LANES == 16 ? 1 : 2), WIDTH = 2 * LANES;
  int64_t c = first;
  for (; c + PAIRS * WIDTH <= end; c += PAIRS * WIDTH) mix_pairs<NY, PAIRS>(y, h, h_stride, w, num_w, c);
  for (; c + WIDTH <= end; c += WIDTH) mix_pairs<NY, 1>(y, h, h_stride, w, num_w, c);
  for (; c + LANES <= end; c += LANES) mix_lanes<NY>(y, h, h_stride, w, num_w, c);
  for (; c < end; c++)
    for (int i = 0; i < NY; i++) {
      float sum = load_one(y[i] + c);
      for (int64_t j = 0; j < num_w; j++) sum += load_one(w[j] + c) * h[i * h_stride + j];
      store_one(y[i] + c, sum);
    }
}

// y [num_y] rows and w [num_w] rows, columns `first` to `end` of both; h[i * h_stride + j]
template <class Y, class W>
void mix(Y* const* y, int64_t num_y, const float* h, int64_t h_stride, const W* const* w, int64_t num_w,
         int64_t end, int64_t first = 0) {
  for (int64_t i = 0; i < num_y; i += TILE) {
    const float* own = h + i * h_stride;
    switch (num_y - i) {
      case 1: mix_rows<1>(y + i, own, h_stride, w, num_w, first, end); break;
      case 2: mix_rows<2>(y + i, own, h_stride, w, num_w, first, end); break;
      case 3: mix_rows<3>(y + i, own, h_stride, w, num_w, first, end); break;
      default: mix_rows<4>(y + i, own, h_stride, w, num_w, first, end);
    }
  }
}

}  // namespace
