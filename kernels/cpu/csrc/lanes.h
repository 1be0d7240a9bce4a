// Vectors of LANES floats: loads and stores with conversion, horizontal sums, exp.
//
// Everything here is compiled once per instruction set, so it lives in an unnamed namespace: a
// function shared between levels would be linked in whichever version came first and stop on a
// machine that lacks it. For the same reason nothing of the standard library is called.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

namespace {

struct bf16 {
  uint16_t bits;
};

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t IntLanes __attribute__((vector_size(4 * LANES)));
typedef uint32_t WordLanes __attribute__((vector_size(4 * LANES)));
typedef uint16_t HalfLanes __attribute__((vector_size(2 * LANES)));

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

inline Lanes broadcast(float value) { return Lanes{} + value; }

inline Lanes load(const float* from) {
  Lanes lanes;
  memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}

inline Lanes load(const bf16* from) {
  HalfLanes half;
  memcpy(&half, from, sizeof(half));
  return bit_cast<Lanes>(__builtin_convertvector(half, WordLanes) << 16);
}

inline float load_one(const float* from) { return *from; }
inline float load_one(const bf16* from) { return bit_cast<float>(uint32_t(from->bits) << 16); }

inline void store(float* to, Lanes lanes) { memcpy(to, &lanes, sizeof(lanes)); }

// Rounds to the nearest, ties to even, as torch does; NaN stays NaN.
#if defined(__AVX512BF16__)
inline HalfLanes halves(Lanes lanes) { return (HalfLanes)_mm512_cvtneps_pbh((__m512)lanes); }
#else
inline HalfLanes halves(Lanes lanes) {
  WordLanes bits = bit_cast<WordLanes>(lanes);
  WordLanes rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  WordLanes is_nan = bit_cast<WordLanes>(lanes != lanes);
  return __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7fc0), HalfLanes);
}
#endif

inline Lanes widened(HalfLanes half) { return bit_cast<Lanes>(__builtin_convertvector(half, WordLanes) << 16); }

inline void store(bf16* to, Lanes lanes) {
  const HalfLanes half = halves(lanes);
  memcpy(to, &half, sizeof(half));
}

inline void store_one(float* to, float value) { *to = value; }
inline void store_one(bf16* to, float value) {
  uint32_t bits = bit_cast<uint32_t>(value);
  to->bits = value != value ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// The four sums of four vectors, in a fixed order.
#if defined(__x86_64__)
inline __m128 fold(Lanes lanes) {
#if LANES == 16
  __m512 v = (__m512)lanes;
  __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v),
                              _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
#elif LANES == 8
  __m256 v = (__m256)lanes;
  return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
#else
  return (__m128)lanes;
#endif
}

inline void sum4(const Lanes* lanes, float* sums) {
  __m128 a = fold(lanes[0]), b = fold(lanes[1]), c = fold(lanes[2]), d = fold(lanes[3]);
  _MM_TRANSPOSE4_PS(a, b, c, d);
  _mm_storeu_ps(sums, _mm_add_ps(_mm_add_ps(a, b), _mm_add_ps(c, d)));
}
#else
inline void sum4(const Lanes* lanes, float* sums) {
  for (int i = 0; i < 4; i++) sums[i] = (lanes[i][0] + lanes[i][1]) + (lanes[i][2] + lanes[i][3]);
}
#endif

// The sums of four times four vectors to out[i * stride + j], each in the order of sum4.
#if LANES == 16
inline void sum16(const Lanes (*lanes)[4], float* out, int64_t stride) {
  __m512 columns[4];
  for (int j = 0; j < 4; j++) {  // 16-byte quarter i of columns[j] is lanes[i][j], folded
    __m512 a = (__m512)lanes[0][j], b = (__m512)lanes[1][j], c = (__m512)lanes[2][j], d = (__m512)lanes[3][j];
    __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    columns[j] = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  }
  __m512 left = _mm512_add_ps(_mm512_shuffle_ps(columns[0], columns[1], 0x88),
                              _mm512_shuffle_ps(columns[0], columns[1], 0xdd));
  __m512 right = _mm512_add_ps(_mm512_shuffle_ps(columns[2], columns[3], 0x88),
                               _mm512_shuffle_ps(columns[2], columns[3], 0xdd));
  __m512 sums = _mm512_add_ps(_mm512_shuffle_ps(left, right, 0x88), _mm512_shuffle_ps(left, right, 0xdd));
  _mm_storeu_ps(out, _mm512_castps512_ps128(sums));
  _mm_storeu_ps(out + stride, _mm512_extractf32x4_ps(sums, 1));
  _mm_storeu_ps(out + 2 * stride, _mm512_extractf32x4_ps(sums, 2));
  _mm_storeu_ps(out + 3 * stride, _mm512_extractf32x4_ps(sums, 3));
}
#else
inline void sum16(const Lanes (*lanes)[4], float* out, int64_t stride) {
  for (int i = 0; i < 4; i++) sum4(lanes[i], out + i * stride);
}
#endif

inline float sum(Lanes lanes) {
  Lanes four[4] = {lanes, Lanes{}, Lanes{}, Lanes{}};
  float sums[4];
  sum4(four, sums);
  return sums[0];
}

inline float max(Lanes lanes) {
#if LANES == 16
  return _mm512_reduce_max_ps((__m512)lanes);
#endif
  float largest = lanes[0];
  for (int i = 1; i < LANES; i++) largest = lanes[i] > largest ? lanes[i] : largest;
  return largest;
}

// e to the x within 2 units in the last place; exactly 0 below -87, so that what a mask hides adds nothing.
inline Lanes exp(Lanes x) {
  Lanes bounded = x < -87.0f ? broadcast(-87.0f) : x;
  bounded = bounded > 88.0f ? broadcast(88.0f) : bounded;
  const Lanes magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  Lanes shifted = bounded * 1.44269504f + magic;
  Lanes whole = shifted - magic;
  Lanes r = bounded - whole * 0.693359375f;
  r = r + whole * 2.12194440e-4f;
  Lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;  // Cephes expf
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  IntLanes exponent = (bit_cast<IntLanes>(shifted) - bit_cast<IntLanes>(magic)) << 23;
  Lanes power = bit_cast<Lanes>(bit_cast<IntLanes>(p) + exponent);
  return x < -87.0f ? Lanes{} : power;
}

inline float exp_one(float x) { return exp(broadcast(x))[0]; }

}  // namespace
