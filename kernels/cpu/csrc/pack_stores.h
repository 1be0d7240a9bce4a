// What packing stores with: each number seen once on its way, and lines that may go past the caches.
#pragma once

#include "lanes.h"

namespace {

// As many 16-bit numbers as fill a vector.
typedef uint16_t Line __attribute__((vector_size(4 * LANES)));
const int64_t LINE_HALVES = 2 * LANES;

// Collects whether any number stored is infinite or NaN: only then adding one to the exponent reaches the sign.
struct Watch {
  WordLanes words = {};
  HalfLanes halves = {};
  Line lines = {};

  void see(WordLanes bits) { words |= (bits & 0x7fffffffu) + 0x00800000u; }
  void see(HalfLanes bits) { halves |= (bits & uint16_t(0x7fff)) + uint16_t(0x0080); }
  void see(Line bits) { lines |= (bits & uint16_t(0x7fff)) + uint16_t(0x0080); }

  bool finite() const {
    uint32_t seen = 0;
    for (int i = 0; i < LANES; i++) seen |= words[i] | (uint32_t(halves[i]) << 16);
    for (int i = 0; i < LINE_HALVES; i++) seen |= uint32_t(lines[i]) << 16;
    return seen >> 31 == 0;
  }
};

// Past the caches: a store through them would fetch its line first. `to` is a multiple of the vector's size.
template <class Bits>
inline void stream(void* to, Bits bits) {
#if defined(__x86_64__)
#if LANES == 16
  if constexpr (sizeof(bits) == 64) return _mm512_stream_si512((__m512i*)to, bit_cast<__m512i>(bits));
#endif
#if LANES >= 8
  if constexpr (sizeof(bits) == 32) return _mm256_stream_si256((__m256i*)to, bit_cast<__m256i>(bits));
#endif
  if constexpr (sizeof(bits) == 16) return _mm_stream_si128((__m128i*)to, bit_cast<__m128i>(bits));
  if constexpr (sizeof(bits) == 8) return _mm_stream_si64((long long*)to, bit_cast<long long>(bits));
#else
  memcpy(to, &bits, sizeof(bits));
#endif
}

template <bool STREAM, class Bits>
inline void keep_bits(void* to, Bits bits, Watch& watch) {
  watch.see(bits);
  if (STREAM)
    stream(to, bits);
  else
    memcpy(to, &bits, sizeof(bits));
}

template <bool STREAM>
inline void keep(float* to, Lanes lanes, Watch& watch) {
  keep_bits<STREAM>(to, bit_cast<WordLanes>(lanes), watch);
}

template <bool STREAM>
inline void keep(bf16* to, Lanes lanes, Watch& watch) {
  keep_bits<STREAM>(to, halves(lanes), watch);
}

}  // namespace
