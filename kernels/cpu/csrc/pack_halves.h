// A matrix of bf16 turned into bf16, by lines of one column of many rows: see pack_adapter.h.
//
// Eight rows by eight columns turn inside each 128 bits, which needs no shuffle across them; and numbers are widened
// as even and odd ones, so nothing is moved to be multiplied.
#pragma once

#include "calls.h"
#include "pack_stores.h"

namespace {

const int64_t EIGHT = 8;

// Eight numbers of each of LINE_HALVES / 8 rows, `stride` numbers apart.
inline Line join_eights(const bf16* from, int64_t stride) {
#if LANES == 16
  __m512i rows = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i*)from));
  rows = _mm512_inserti32x4(rows, _mm_loadu_si128((const __m128i*)(from + stride)), 1);
  rows = _mm512_inserti32x4(rows, _mm_loadu_si128((const __m128i*)(from + 2 * stride)), 2);
  return (Line)_mm512_inserti32x4(rows, _mm_loadu_si128((const __m128i*)(from + 3 * stride)), 3);
#elif LANES == 8
  const __m128i low = _mm_loadu_si128((const __m128i*)from), high = _mm_loadu_si128((const __m128i*)(from + stride));
  return (Line)_mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
#else
  Line row;
  memcpy(&row, from, sizeof(row));
  return row;
#endif
}

// The lower, or upper, halves of every 128 bits of two vectors, `Number` by `Number` in turn.
template <class Number>
inline Line zip(Line one, Line other, bool upper) {
  const int COUNT = sizeof(Line) / sizeof(Number), IN_128 = 16 / sizeof(Number);
  typedef Number Numbers __attribute__((vector_size(sizeof(Line))));
  Numbers order;
  for (int i = 0; i < COUNT; i++) {
    const int lane = i % IN_128;
    order[i] = Number(i - lane + (upper ? IN_128 / 2 : 0) + lane / 2 + lane % 2 * COUNT);
  }
  return bit_cast<Line>(__builtin_shuffle(bit_cast<Numbers>(one), bit_cast<Numbers>(other), order));
}

// Each eight by eight tile on its diagonal: number 8q + j of vector c is then column c of row 8q + j.
inline void turn_eights(Line* rows) {
  Line pairs[EIGHT], fours[EIGHT];
  for (int i = 0; i < 4; i++) {
    pairs[2 * i] = zip<uint16_t>(rows[2 * i], rows[2 * i + 1], false);
    pairs[2 * i + 1] = zip<uint16_t>(rows[2 * i], rows[2 * i + 1], true);
  }
  for (int i = 0; i < EIGHT; i += 4)
    for (int half = 0; half < 2; half++) {
      fours[i + 2 * half] = zip<uint32_t>(pairs[i + half], pairs[i + 2 + half], false);
      fours[i + 2 * half + 1] = zip<uint32_t>(pairs[i + half], pairs[i + 2 + half], true);
    }
  for (int i = 0; i < 4; i++) {
    rows[2 * i] = zip<uint64_t>(fours[i], fours[i + 4], false);
    rows[2 * i + 1] = zip<uint64_t>(fours[i], fours[i + 4], true);
  }
}

// The upper half of each is its bf16, to the nearest, ties to even.
inline WordLanes rounded(Lanes lanes) {
  const WordLanes bits = bit_cast<WordLanes>(lanes);
  return bits + 0x7fff + ((bits >> 16) & 1);
}

inline Line scaled(Line line, Lanes scaling) {
  const WordLanes bits = bit_cast<WordLanes>(line);
  const WordLanes low = rounded(bit_cast<Lanes>(bits << 16) * scaling);
  const WordLanes high = rounded(bit_cast<Lanes>(bits & 0xffff0000u) * scaling);
  return bit_cast<Line>((low >> 16) | (high & 0xffff0000u));
}

// LINE_HALVES rows and eight columns from `row`, `column` on.
template <bool STREAM>
inline void turn_lines(const PackCall& call, const PackPlace& place, int64_t row, int64_t column, Watch& watch) {
  Line lines[EIGHT];
  const bf16* from = reinterpret_cast<const bf16*>(place.from) + row * call.num_columns + column;
  for (int j = 0; j < EIGHT; j++) lines[j] = join_eights(from + j * call.num_columns, EIGHT * call.num_columns);
  turn_eights(lines);
  bf16* to = reinterpret_cast<bf16*>(place.to) + column * call.to_stride + row;
  const Lanes scaling = broadcast(float(call.scaling));
  for (int c = 0; c < EIGHT; c++) {
    watch.see(lines[c]);  // before, because NaN may round to a number
    keep_bits<STREAM && sizeof(Line) == LINE_BYTES>(to + c * call.to_stride, scaled(lines[c], scaling), watch);
  }
}

}  // namespace
