// Cuts a call into units, each computed by one thread from begin to end, and says what scratch one needs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "calls.h"

namespace {

// Tokens of a unit: as many as LORA_TOKENS unless threads would be left without one.
inline int64_t lora_height(const LoraCall& call, int64_t num_threads) {
  for (int64_t height = LORA_TOKENS;; height /= 2) {
    int64_t units = 0;
    for (int64_t tile = 0; tile < call.num_tiles; tile++)
      units += (call.tiles[tile].length + height - 1) / height;
    if (units >= num_threads || height == MIN_LORA_TOKENS) return height;
  }
}

inline void lora_units(const LoraCall& call, int64_t num_threads, std::vector<LoraUnit>& units) {
  const int64_t height = lora_height(call, num_threads);
  for (int64_t tile = 0; tile < call.num_tiles; tile++)
    for (int64_t first = 0; first < call.tiles[tile].length; first += height)
      units.push_back({tile, first, std::min(height, call.tiles[tile].length - first)});
}

// Floats of hidden values: those of so many tokens.
inline size_t hidden_floats(const LoraCall& call, int64_t num_tokens) {
  return size_t(num_tokens * call.num_slices * call.max_rank);
}

// Where a unit's hidden values are among those of all tokens that have an adapter.
inline size_t hidden_offset(const LoraCall& call, const LoraUnit& unit) {
  return hidden_floats(call, call.tiles[unit.tile].start + unit.first);
}

inline int64_t num_adapted(const LoraCall& call) {
  return call.num_tiles ? call.tiles[call.num_tiles - 1].start + call.tiles[call.num_tiles - 1].length : 0;
}

// Addresses of B's rows.
inline size_t expand_scratch(const LoraCall& call) { return size_t(call.max_rank * FLOATS_PER_ADDRESS); }

const int64_t WHOLE_CHUNKS = 8;  // sequences a thread from which on a unit has all heads of one
const int64_t MAX_LANES = 16;    // of any level

inline int64_t group_queries(const AttentionCall& call) {
  return std::max<int64_t>(1, QUERY_ROWS / (call.num_heads / call.kv_heads));
}

inline void attention_units(const AttentionCall& call, int64_t num_threads, std::vector<AttentionUnit>& units) {
  const int64_t queries = group_queries(call);
  for (int64_t chunk = 0; chunk < call.num_chunks; chunk++) {
    // One head after the other of a token: with sequences enough for all threads nobody waits for the last.
    const bool whole = call.chunks[chunk].length == 1 && call.num_chunks >= WHOLE_CHUNKS * num_threads;
    const int64_t heads = whole ? call.kv_heads : 1;
    for (int64_t first = 0; first < call.chunks[chunk].length; first += queries)
      for (int64_t head = 0; head < call.kv_heads; head += heads)
        units.push_back({chunk, head, heads, first, std::min(queries, call.chunks[chunk].length - first)});
  }
}

// A tile; of each row two addresses, scores, weights, sums, totals, maximum, factor.
inline size_t attention_scratch(const AttentionCall& call) {
  const int64_t rows = group_queries(call) * (call.num_heads / call.kv_heads);
  return size_t(tile_scratch(call, rows)) +
         size_t(rows) * size_t(2 * KEYS + call.v_head_dim + MAX_LANES + 2 + 2 * FLOATS_PER_ADDRESS);
}

enum Purpose { SCRATCH, HIDDEN };

// Memory of the calling thread, at least this large; kept from call to call.
template <Purpose>
inline float* own_floats(size_t count) {
  thread_local std::vector<float> floats;
  if (floats.size() < count) floats.resize(count);
  return floats.data();
}

}  // namespace
