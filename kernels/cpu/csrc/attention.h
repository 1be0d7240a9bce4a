// o[t] = softmax(scaling · q[t] Kᵀ + mask) V        over the blocks of t's sequence, up to t
//
// One pass over the keys in steps of KEYS (online softmax, https://arxiv.org/abs/1805.02867). The
// rows of a unit are its queries times the query heads of one KV head, so each key is read once
// for all of them. Steps begin at multiples of KEYS: chunking a prompt changes no number. While a step
// is computed, the keys and values of the next are on their way.
#pragma once

#include "attention_tile.h"
#include "calls.h"
#include "packed_tile.h"
#include "pointwise.h"
#include "wide_tile.h"

namespace {

template <class T>
void write_token(const AttentionCall& call, int64_t token) {
  const int64_t row = call.rows[token];
  for (int64_t head = 0; head < call.kv_heads; head++) {
    const T* key = static_cast<const T*>(call.key) + token * call.key_token + head * call.key_head;
    const T* value = static_cast<const T*>(call.value) + token * call.value_token + head * call.value_head;
    memcpy(static_cast<T*>(call.k_cache) + (row * call.kv_heads + head) * call.head_dim, key,
           call.head_dim * sizeof(T));
    memcpy(static_cast<T*>(call.v_cache) + (row * call.kv_heads + head) * call.v_head_dim, value,
           call.v_head_dim * sizeof(T));
  }
}

// Heads of a token lie beside each other, so a head's keys are too far apart for the machine to foresee.
template <class T>
inline void fetch(const T* row, int64_t length) {
  for (int64_t byte = 0; byte < length * int64_t(sizeof(T)); byte += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(row) + byte);
}

const float HIDDEN = -1e30f;  // a maximum that no score has: nothing was seen yet
const float MASKED = -1e38f;

inline Lanes tanh(Lanes x) { return 1.0f - 2.0f / (exp(2.0f * x) + 1.0f); }

// What a row may see of a tile: keys [begin, end) of KEYS.
struct Seen {
  int32_t begin, end;

  Seen(const AttentionCall& call, int64_t first_key, int64_t num_keys, int64_t position) {
    const int64_t last = position + 1 - first_key < num_keys ? position + 1 - first_key : num_keys;
    const int64_t first = call.window ? position - call.window + 1 - first_key : 0;
    begin = int32_t(first < 0 ? 0 : first > KEYS ? KEYS : first);
    end = int32_t(last < 0 ? 0 : last);
  }

  inline Lanes masked(Lanes scores, const IntLanes& keys) const {
    return (keys >= begin) & (keys < end) ? scores : broadcast(MASKED);
  }
};

// Scores of one row become weights; returns the factor for what was summed before.
// total: LANES sums, whose sum is the weights' so far.
template <class Weight>
inline float soften(const AttentionCall& call, const float* scores, const Seen& seen, float& maximum, float* total,
                    Weight* weights) {
  const float scaling = float(call.scaling), softcap = float(call.softcap);
  IntLanes keys;
  for (int32_t lane = 0; lane < LANES; lane++) keys[lane] = lane;
  Lanes largest = broadcast(maximum), parts[KEYS / LANES];
  for (int64_t i = 0; i < KEYS / LANES; i++, keys += LANES) {
    Lanes part = load(scores + i * LANES) * scaling;
    if (softcap != 0) part = softcap * tanh(part / softcap);
    parts[i] = seen.masked(part, keys);
    largest = parts[i] > largest ? parts[i] : largest;
  }
  const float before = maximum;
  maximum = max(largest);
  const float factor = before == maximum ? 1.0f : exp_one(before - maximum);
  Lanes sums = load(total) * factor;
  for (int64_t i = 0; i < KEYS / LANES; i++) {
    const Lanes weight = rounded(exp(parts[i] - maximum), weights);
    store(weights + i * LANES, weight);
    sums += weight;
  }
  store(total, sums);
  return factor;
}

// The keys and values of one head of a chunk, by tile.
template <class T>
struct ChunkTiles {
  const AttentionCall& call;
  const AttentionChunk& chunk;
  int64_t seen, context;  // positions [seen, context) are read: before them blocks may be someone else's by now

  int64_t first() const { return seen / KEYS * KEYS; }

  void find(int64_t head, int64_t tile, TileRows<T>& rows) const {
    rows.begin = tile < seen ? seen - tile : 0;
    rows.end = context - tile < KEYS ? context - tile : KEYS;
    int64_t block = (tile + rows.begin) / call.block_size, place = (tile + rows.begin) % call.block_size;
    for (int64_t k = rows.begin; k < rows.end; k++) {
      const int64_t row = (chunk.blocks[block] * call.block_size + place) * call.kv_heads + head;
      rows.keys[k] = static_cast<const T*>(call.k_cache) + row * call.head_dim;
      rows.values[k] = static_cast<const T*>(call.v_cache) + row * call.v_head_dim;
      fetch(rows.keys[k], call.head_dim);
      fetch(rows.values[k], call.v_head_dim);
      if (++place == call.block_size) {
        place = 0;
        block++;
      }
    }
  }
};

// What a unit keeps of its rows, queries times group, while it passes over the keys of a head.
template <class Query, class Weight>
struct UnitRows {
  const Query** queries;
  float** outputs;
  float *scores, *sums, *totals, *maxima, *factors;
  Weight* weights;

  // scratch: as units.h says
  UnitRows(const AttentionCall& call, int64_t num_rows, float* scratch) {
    queries = reinterpret_cast<const Query**>(scratch);
    outputs = reinterpret_cast<float**>(scratch + num_rows * FLOATS_PER_ADDRESS);
    scores = scratch + 2 * num_rows * FLOATS_PER_ADDRESS;
    weights = reinterpret_cast<Weight*>(scores + num_rows * KEYS);
    sums = scores + 2 * num_rows * KEYS;
    totals = sums + num_rows * call.v_head_dim;
    maxima = totals + num_rows * LANES;
    factors = maxima + num_rows;
  }
};

template <class T, class Tile>
inline void attend_heads(const AttentionCall& call, const AttentionUnit& unit, float* scratch) {
  const AttentionChunk& chunk = call.chunks[unit.chunk];
  const int64_t group = call.num_heads / call.kv_heads, num_rows = unit.length * group;
  const int64_t first = chunk.past + unit.first;
  const ChunkTiles<T> tiles = {call, chunk, call.window && first >= call.window ? first - call.window + 1 : 0,
                               first + unit.length};
  Tile tile(call, scratch);
  const UnitRows<typename Tile::Query, typename Tile::Weight> rows(call, num_rows,
                                                                   scratch + tile_scratch(call, num_rows));
  TileRows<T> found[2];  // the tile at hand, and the one that comes next
  int which = 0;
  tiles.find(unit.kv_head, tiles.first(), found[which]);
  for (int64_t kv_head = unit.kv_head; kv_head < unit.kv_head + unit.num_heads; kv_head++) {
    for (int64_t r = 0; r < num_rows; r++) {
      const int64_t token = chunk.first_row + unit.first + r / group, head = kv_head * group + r % group;
      rows.queries[r] =
          tile.query(r, static_cast<const T*>(call.query) + token * call.query_token + head * call.query_head);
      rows.outputs[r] = rows.sums + r * call.v_head_dim;
      rows.maxima[r] = call.sinks ? static_cast<const float*>(call.sinks)[head] : HIDDEN;
      store(rows.totals + r * LANES, Lanes{});
      if (call.sinks) rows.totals[r * LANES] = 1.0f;
    }
    memset(rows.sums, 0, num_rows * call.v_head_dim * sizeof(float));
    for (int64_t at = tiles.first(); at < tiles.context; at += KEYS) {
      tile.place(found[which]);
      const int64_t end = found[which].end;
      if (at + KEYS < tiles.context)
        tiles.find(kv_head, at + KEYS, found[1 - which]);
      else if (kv_head + 1 < unit.kv_head + unit.num_heads)
        tiles.find(kv_head + 1, tiles.first(), found[1 - which]);
      tile.scores(rows.queries, num_rows, rows.scores);
      for (int64_t r = 0; r < num_rows; r++)
        rows.factors[r] = soften(call, rows.scores + r * KEYS, Seen(call, at, end, first + r / group), rows.maxima[r],
                                 rows.totals + r * LANES, rows.weights + r * KEYS);
      tile.mix(rows.outputs, num_rows, rows.weights, rows.factors);
      which = 1 - which;
    }
    for (int64_t r = 0; r < num_rows; r++) {
      const int64_t token = chunk.first_row + unit.first + r / group, head = kv_head * group + r % group;
      T* out = static_cast<T*>(call.out) + (token * call.num_heads + head) * call.v_head_dim;
      const float inverse = 1.0f / sum(load(rows.totals + r * LANES));
      int64_t d = 0;
      for (; d + LANES <= call.v_head_dim; d += LANES) store(out + d, load(rows.outputs[r] + d) * inverse);
      for (; d < call.v_head_dim; d++) store_one(out + d, rows.outputs[r][d] * inverse);
    }
  }
}

template <class T>
void attend_unit(const AttentionCall& call, const AttentionUnit& unit, float* scratch) {
#if defined(__AVX512BF16__)
  if constexpr (sizeof(T) == sizeof(bf16))
    if (PackedTile::fits(call)) return attend_heads<T, PackedTile>(call, unit, scratch);
#else
  if constexpr (sizeof(T) == sizeof(bf16))
    if (WideTile::fits(call, unit.length * (call.num_heads / call.kv_heads)))
      return attend_heads<T, WideTile>(call, unit, scratch);
#endif
  attend_heads<T, RowTile<T>>(call, unit, scratch);
}

}  // namespace
