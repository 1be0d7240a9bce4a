// An adapter's matrices into the rank pool's layout, at the speed of copying them.
//
//   straight  to[i][j] = from[i][j]
//   turned    to[j][i] = from[i][j] · scaling · scales[i]        each product rounded to fp32, as torch does
//
// One thread computes, without OpenMP: loader threads run beside the one that steps. Tiles of four columns turn in
// registers, which any rank that four divides fills, or of eight (pack_halves.h). A turned matrix goes in strips of 128
// rows: 44 MB of bf16 took 7.0 ms so, 10.2 ms in strips of 32, which write one line of a row of `to` at a time.
//
// Large adapters are stored past the caches. 84 MB of bf16 on AVX-512, where a memcpy takes 11.4 ms: 20.2 ms before,
// 15.8 with streamed copies of A, 12.0 with B by lines of eight columns, streamed too. Streaming pays only where lines
// are stored whole: B by the half lines of AVX2 took 26 ms so, and 10 through the caches.
#pragma once

#include "calls.h"
#include "lanes.h"
#include "pack_halves.h"
#include "pack_stores.h"

namespace {

const int64_t STRIP = 128;  // rows of a turned matrix
const int64_t FOUR = 4;

struct half {
  uint16_t bits;
};

// Every half is an fp32 number: its exponent moves by 112, which the product does for denormals too.
inline Lanes widened(half, HalfLanes bits) {
  WordLanes wide = __builtin_convertvector(bits, WordLanes);
  WordLanes magnitude = (wide & 0x7fff) << 13;
  WordLanes is_special = bit_cast<WordLanes>(magnitude >= 0x0f800000u);  // infinity and NaN
  WordLanes value = bit_cast<WordLanes>(bit_cast<Lanes>(magnitude) * 0x1p112f);
  value = (value & ~is_special) | ((magnitude | 0x7f800000u) & is_special);
  return bit_cast<Lanes>(value | ((wide & 0x8000) << 16));
}

inline Lanes widened(bf16, HalfLanes bits) { return widened(bits); }

inline Lanes load(const half* from) {
  HalfLanes bits;
  memcpy(&bits, from, sizeof(bits));
  return widened(half(), bits);
}

// The first `count` numbers; the others are 0.
template <class From>
inline Lanes load_some(const From* from, int64_t count) {
  From some[LANES] = {};
  for (int64_t i = 0; i < count; i++) memcpy(some + i, from + i, sizeof(From));  // perhaps not aligned
  return load(some);
}

template <class To>
inline void keep_some(To* to, Lanes lanes, int64_t count, Watch& watch) {
  To some[LANES];
  keep<false>(some, lanes, watch);
  for (int64_t i = 0; i < count; i++) to[i] = some[i];
}

template <class From, class To>
struct Same {
  static const bool value = false;
};
template <class Number>
struct Same<Number, Number> {
  static const bool value = true;
};

// Numbers that stay what they are go by whole vectors.
template <bool STREAM, class From, class To>
inline int64_t keep_row(const From* from, To* to, int64_t count, Watch& watch) {
  int64_t i = 0;
  if constexpr (Same<From, To>::value && sizeof(To) == 2) {
    for (; i + LINE_HALVES <= count; i += LINE_HALVES) {
      Line line;
      memcpy(&line, from + i, sizeof(line));
      keep_bits<STREAM>(to + i, line, watch);
    }
  } else {
    for (; i + LANES <= count; i += LANES) keep<STREAM>(to + i, load(from + i), watch);
  }
  return i;
}

template <bool STREAM, class From, class To>
void pack_straight(const PackCall& call, const PackPlace& place, Watch& watch) {
  for (int64_t row = 0; row < call.num_rows; row++) {
    const From* from = reinterpret_cast<const From*>(place.from) + row * call.num_columns;
    To* to = reinterpret_cast<To*>(place.to) + row * call.to_stride;
    for (int64_t i = keep_row<STREAM>(from, to, call.num_columns, watch); i < call.num_columns; i += LANES) {
      const int64_t count = call.num_columns - i < LANES ? call.num_columns - i : LANES;
      keep_some(to + i, load_some(from + i, count), count, watch);
    }
  }
}

// Four numbers of each of LANES / 4 rows, joined in registers: stored in pieces and loaded as one, they would wait.
inline Lanes join_rows(const float* from, int64_t stride) {
#if LANES == 16
  __m512 rows = _mm512_castps128_ps512(_mm_loadu_ps(from));
  rows = _mm512_insertf32x4(rows, _mm_loadu_ps(from + stride), 1);
  rows = _mm512_insertf32x4(rows, _mm_loadu_ps(from + 2 * stride), 2);
  return (Lanes)_mm512_insertf32x4(rows, _mm_loadu_ps(from + 3 * stride), 3);
#elif LANES == 8
  return (Lanes)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from)), _mm_loadu_ps(from + stride), 1);
#else
  return load(from);
#endif
}

template <class Half>
inline Lanes join_rows(const Half* from, int64_t stride) {
  typedef uint64_t Rows __attribute__((vector_size(2 * LANES)));
  Rows rows;
  for (int q = 0; q < LANES / FOUR; q++) {
    uint64_t row;
    memcpy(&row, from + q * stride, sizeof(row));
    rows[q] = row;
  }
  return widened(Half(), bit_cast<HalfLanes>(rows));
}

// Numbers of four columns and of LANES rows: lane 4q + c of vector j is column c of row 4q + j.
template <class From>
inline void load_fours(const From* from, int64_t stride, Lanes* fours) {
  for (int j = 0; j < FOUR; j++) fours[j] = join_rows(from + j * stride, FOUR * stride);
}

// Each four by four tile on its diagonal: lane 4q + j of vector c is then column c of row 4q + j.
inline void turn_fours(Lanes* fours) {
  IntLanes low, high, even, odd;
  for (int i = 0; i < LANES; i++) {
    const int tile = i / 4 * 4, lane = i % 4;
    low[i] = tile + lane / 2 + lane % 2 * LANES;
    high[i] = low[i] + 2;
    even[i] = tile + lane % 2 + lane / 2 * LANES;
    odd[i] = even[i] + 2;
  }
  const Lanes a = __builtin_shuffle(fours[0], fours[1], low), b = __builtin_shuffle(fours[0], fours[1], high);
  const Lanes c = __builtin_shuffle(fours[2], fours[3], low), d = __builtin_shuffle(fours[2], fours[3], high);
  fours[0] = __builtin_shuffle(a, c, even);
  fours[1] = __builtin_shuffle(a, c, odd);
  fours[2] = __builtin_shuffle(b, d, even);
  fours[3] = __builtin_shuffle(b, d, odd);
}

// LANES rows and four columns from `row`, `column` on.
template <bool STREAM, class From, class To>
inline void turn_tile(const PackCall& call, const PackPlace& place, int64_t row, int64_t column, Watch& watch) {
  Lanes fours[FOUR];
  load_fours(reinterpret_cast<const From*>(place.from) + row * call.num_columns + column, call.num_columns, fours);
  turn_fours(fours);
  To* to = reinterpret_cast<To*>(place.to) + column * call.to_stride + row;
  for (int c = 0; c < FOUR; c++) {
    Lanes scaled = fours[c] * float(call.scaling);
    if (place.scales) scaled *= load(place.scales + row);
    keep<STREAM && sizeof(To) * LANES == LINE_BYTES>(to + c * call.to_stride, scaled, watch);
  }
}

// What is left of rows or columns, number by number.
template <class From, class To>
inline void turn_rest(const PackCall& call, const PackPlace& place, int64_t row, int64_t end_row, int64_t column,
                      int64_t end_column, Watch& watch) {
  for (int64_t i = row; i < end_row; i++)
    for (int64_t j = column; j < end_column; j++) {
      Lanes scaled = load_some(reinterpret_cast<const From*>(place.from) + i * call.num_columns + j, 1);
      scaled *= float(call.scaling);
      if (place.scales) scaled *= place.scales[i];
      keep_some(reinterpret_cast<To*>(place.to) + j * call.to_stride + i, scaled, 1, watch);
    }
}

// Columns from `column` on, as many as tiles take; all of these rows are whole tiles.
template <bool STREAM, class From, class To>
inline int64_t turn_columns(const PackCall& call, const PackPlace& place, int64_t row, int64_t end, Watch& watch) {
  int64_t column = 0;
  if constexpr (Same<From, bf16>::value && Same<To, bf16>::value) {
    if (!place.scales && (end - row) % LINE_HALVES == 0)
      for (; column + EIGHT <= call.num_columns; column += EIGHT)
        for (int64_t i = row; i < end; i += LINE_HALVES) turn_lines<STREAM>(call, place, i, column, watch);
  }
  for (; column + FOUR <= call.num_columns; column += FOUR)
    for (int64_t i = row; i < end; i += LANES) turn_tile<STREAM, From, To>(call, place, i, column, watch);
  return column;
}

template <bool STREAM, class From, class To>
void pack_turned(const PackCall& call, const PackPlace& place, Watch& watch) {
  for (int64_t strip = 0; strip < call.num_rows; strip += STRIP) {
    const int64_t end = strip + STRIP < call.num_rows ? strip + STRIP : call.num_rows;
    const int64_t rows = strip + (end - strip) / LANES * LANES;
    const int64_t columns = turn_columns<STREAM, From, To>(call, place, strip, rows, watch);
    turn_rest<From, To>(call, place, rows, end, 0, columns, watch);
    turn_rest<From, To>(call, place, strip, end, columns, call.num_columns, watch);
  }
}

template <bool STREAM, class From, class To>
bool pack_matrix(const PackCall& call, const PackPlace& place) {
  Watch watch;
  call.turned ? pack_turned<STREAM, From, To>(call, place, watch) : pack_straight<STREAM, From, To>(call, place, watch);
  return watch.finite();
}

template <class From, class To>
bool pack_to(const PackCall& call, const PackPlace& place) {
  const uint64_t begin = reinterpret_cast<uint64_t>(place.to), stride = call.to_stride * sizeof(To);
  // Vectors are stored at multiples of their size from there on.
  const bool streams = place.is_large && (begin | stride) % LINE_BYTES == 0;
  return streams ? pack_matrix<true, From, To>(call, place) : pack_matrix<false, From, To>(call, place);
}

template <class From>
bool pack_from(const PackCall& call, const PackPlace& place) {
  return call.to_dtype == FLOAT32 ? pack_to<From, float>(call, place) : pack_to<From, bf16>(call, place);
}

}  // namespace
