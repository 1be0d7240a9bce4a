// What crosses between Python, the threads and the levels: plain structs of addresses and sizes.
// Sizes and strides count elements. All addresses are checked by the Python wrapper.
#pragma once

#include <cstdint>

enum DType : int64_t { FLOAT32 = 0, BFLOAT16 = 1 };

// out[t] += LoRA(x[t]) for the tokens of every tile.
struct LoraCall {
  int64_t x_dtype, pool_dtype;
  const void* x;  // [num_tokens, in_features]
  int64_t x_stride;
  void* out;  // [num_tokens, out_features]
  int64_t out_stride;
  const void* a;  // [num_rows, num_slices, in_features]
  const void* b;  // [num_rows, out_features]
  int64_t in_features, out_features, num_slices;
  const int64_t* columns;  // [num_slices + 1]: where each slice begins, and the end
  int64_t module, ranks_stride;  // the module's ranks begin at ranks[module * ranks_stride]
  const int64_t* order;  // rows of the batch, by tile
  const struct LoraTile* tiles;
  int64_t num_tiles, max_rank;
};

struct LoraTile {
  int64_t start, length;  // of `order`
  const int64_t* pages;
  const int64_t* ranks;  // [modules, ranks_stride]
};

struct LoraUnit {
  int64_t tile, first, length;  // tokens of a tile that one thread computes
};

const int64_t FLOATS_PER_ADDRESS = sizeof(void*) / sizeof(float);
const int64_t PAGE_ROWS = 8;
const int64_t LORA_TOKENS = 16;  // of a unit: their inputs stay in the first cache

// Attention of every chunk over its blocks, the step's own K and V included.
struct AttentionCall {
  int64_t dtype;
  const void *query, *key, *value;  // [tokens, heads, head size] with any strides but the last
  int64_t query_token, query_head, key_token, key_head, value_token, value_head;  // strides
  void *k_cache, *v_cache;  // [num_blocks, block_size, kv_heads, head size]
  void* out;                // [num_tokens, num_heads, v_head_dim]
  const int64_t* rows;      // [num_tokens]: where each token's K and V go
  const struct AttentionChunk* chunks;
  int64_t num_chunks, num_tokens, num_heads, kv_heads, head_dim, v_head_dim, block_size;
  double scaling, softcap;  // softcap 0: none
  int64_t window;           // 0: none
  const void* sinks;        // [num_heads] fp32 or absent
};

struct AttentionChunk {
  int64_t first_row, length, past;
  const int64_t* blocks;
};

struct AttentionUnit {
  int64_t chunk, kv_head, first, length;  // queries of a chunk that one thread computes
};

const int64_t KEYS = 64;         // of a step of the online softmax
const int64_t QUERY_ROWS = 32;   // about as many rows, queries times group, make a unit

// out = x / rms(x) * (weight + offset), row by row, rounded as transformers rounds.
struct NormCall {
  int64_t dtype;
  const void *x, *weight;
  void* out;
  int64_t num_rows, size;
  double eps, offset;
};

struct GateCall {
  int64_t dtype;
  const void *gate, *up;  // [num_rows, size], strides of rows
  int64_t gate_stride, up_stride;
  void* out;  // contiguous
  int64_t num_rows, size;
};

// One instruction set's version of everything.
struct Level {
  void (*lora)(const LoraCall&, const LoraUnit&, float* scratch);
  void (*write)(const AttentionCall&, int64_t token);
  void (*attend)(const AttentionCall&, const AttentionUnit&, float* scratch);
  void (*norm)(const NormCall&, int64_t row);
  void (*gate)(const GateCall&, int64_t row);
};
