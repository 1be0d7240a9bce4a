// A tile brought into the form of gemm.h's panels, once for all rows: then no sum runs across a vector, and both
// products are dot products of bf16, for which the weights p are rounded to bf16.
#pragma once

#include "attention_tile.h"
#include "gemm.h"

#if defined(__AVX512BF16__)

namespace {

// The dwords of 16 rows become those of 16 columns.
inline void transpose(__m512i (&rows)[16]) {
  __m512i pairs[16], fours[16];
  for (int i = 0; i < 8; i++) {
    pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
    pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
  }
  for (int i = 0; i < 4; i++)
    for (int half = 0; half < 2; half++) {
      fours[4 * i + 2 * half] = _mm512_unpacklo_epi64(pairs[4 * i + half], pairs[4 * i + 2 + half]);
      fours[4 * i + 2 * half + 1] = _mm512_unpackhi_epi64(pairs[4 * i + half], pairs[4 * i + 2 + half]);
    }
  // Quarter q of fours[4 i + c] is column 4 q + c of rows 4 i to 4 i + 3.
  for (int c = 0; c < 4; c++) {
    const __m512i low = _mm512_shuffle_i32x4(fours[c], fours[4 + c], 0x88);
    const __m512i odd = _mm512_shuffle_i32x4(fours[c], fours[4 + c], 0xdd);
    const __m512i high = _mm512_shuffle_i32x4(fours[8 + c], fours[12 + c], 0x88);
    const __m512i odd_high = _mm512_shuffle_i32x4(fours[8 + c], fours[12 + c], 0xdd);
    rows[c] = _mm512_shuffle_i32x4(low, high, 0x88);
    rows[8 + c] = _mm512_shuffle_i32x4(low, high, 0xdd);
    rows[4 + c] = _mm512_shuffle_i32x4(odd, odd_high, 0x88);
    rows[12 + c] = _mm512_shuffle_i32x4(odd, odd_high, 0xdd);
  }
}

template <int ROWS>
inline void add_steps(const bf16* const* x, const bf16* panel, int64_t steps, Lanes (*sums)[VECTORS]) {
  for (int64_t s = 0; s < steps; s++) Step<bf16>::add<ROWS>(x, 2 * s, panel + s * 2 * PANEL, sums);
}

struct PackedTile {
  typedef bf16 Query;
  typedef bf16 Weight;
  const AttentionCall& call;
  bf16 *keys, *values;  // [KEYS / PANEL][head_dim / 2][PANEL][2], [v_head_dim / PANEL][KEYS / 2][PANEL][2]
  int64_t end;

  static bool fits(const AttentionCall& call) { return call.head_dim % PANEL == 0 && call.v_head_dim % PANEL == 0; }

  // scratch: KEYS * (head_dim + v_head_dim) / 2 floats
  PackedTile(const AttentionCall& call, float* scratch)
      : call(call), keys(reinterpret_cast<bf16*>(scratch)), values(keys + KEYS * call.head_dim) {}

  const bf16* query(int64_t, const bf16* from) const { return from; }

  void place(const TileRows<bf16>& there) {
    end = there.end;
    for (int64_t first = 0; first < end; first += LANES) place_keys(there, first);
    for (int64_t first = 0; first < end; first += 2) place_values(there, first);
  }

  void scores(const bf16* const* queries, int64_t num_rows, float* out) const {
    for (int64_t first = 0; first < end; first += PANEL)
      in_blocks(num_rows, [&](auto rows, int64_t r) {
        Lanes sums[rows][VECTORS] = {};
        add_steps<rows>(queries + r, keys + first * call.head_dim, call.head_dim / 2, sums);
        for (int i = 0; i < rows; i++)
          for (int v = 0; v < VECTORS; v++) store(out + (r + i) * KEYS + first + v * LANES, sums[i][v]);
      });
  }

  void mix(float* const* outputs, int64_t num_rows, const Weight* weights, const float* factors) const {
    for (int64_t column = 0; column < call.v_head_dim; column += PANEL)
      in_blocks(num_rows, [&](auto rows, int64_t r) {
        Lanes sums[rows][VECTORS];
        const bf16* own[rows];
        for (int i = 0; i < rows; i++) {
          own[i] = weights + (r + i) * KEYS;
          for (int v = 0; v < VECTORS; v++) sums[i][v] = load(outputs[r + i] + column + v * LANES) * factors[r + i];
        }
        add_steps<rows>(own, values + column * KEYS, (end + 1) / 2, sums);
        for (int i = 0; i < rows; i++)
          for (int v = 0; v < VECTORS; v++) store(outputs[r + i] + column + v * LANES, sums[i][v]);
      });
  }

 private:
  static __m512i read(const TileRows<bf16>& there, const bf16* const* rows, int64_t place, int64_t column) {
    if (place < there.begin || place >= there.end) return _mm512_setzero_si512();
    return _mm512_loadu_si512(rows[place] + column);
  }

  void place_keys(const TileRows<bf16>& there, int64_t first) {
    bf16* panel = keys + first / PANEL * PANEL * call.head_dim + first % PANEL * 2;
    for (int64_t column = 0; column < call.head_dim; column += 2 * LANES) {
      __m512i rows[16];
      for (int i = 0; i < 16; i++) rows[i] = read(there, there.keys, first + i, column);
      transpose(rows);
      for (int i = 0; i < 16; i++) _mm512_storeu_si512(panel + (column / 2 + i) * 2 * PANEL, rows[i]);
    }
  }

  void place_values(const TileRows<bf16>& there, int64_t first) {
    __m512i low, high;  // places of the pairs of the first and of the last columns
    for (int i = 0; i < 32; i++) {
      reinterpret_cast<int16_t*>(&low)[i] = int16_t(i / 2 + i % 2 * 32);
      reinterpret_cast<int16_t*>(&high)[i] = int16_t(16 + i / 2 + i % 2 * 32);
    }
    for (int64_t column = 0; column < call.v_head_dim; column += PANEL) {
      const __m512i one = read(there, there.values, first, column), two = read(there, there.values, first + 1, column);
      bf16* to = values + column * KEYS + first * PANEL;
      _mm512_storeu_si512(to, _mm512_permutex2var_epi16(one, low, two));
      _mm512_storeu_si512(to + 2 * LANES, _mm512_permutex2var_epi16(one, high, two));
    }
  }

  template <int COUNT>
  struct Rows {
    constexpr operator int() const { return COUNT; }
  };

  // run(rows, first) for blocks of at most GEMM_ROWS rows, of nearly the same height
  template <class Run>
  static void in_blocks(int64_t num_rows, const Run& run) {
    int64_t blocks = (num_rows + GEMM_ROWS - 1) / GEMM_ROWS;
    for (int64_t r = 0; r < num_rows; blocks--) {
      const int64_t height = (num_rows - r + blocks - 1) / blocks;
      block<GEMM_ROWS>(height, r, run);
      r += height;
    }
  }

  template <int ROWS, class Run>
  static void block(int64_t height, int64_t first, const Run& run) {
    if constexpr (ROWS > 1)
      if (height < ROWS) return block<ROWS - 1>(height, first, run);
    run(Rows<ROWS>{}, first);
  }
};

}  // namespace

#endif
