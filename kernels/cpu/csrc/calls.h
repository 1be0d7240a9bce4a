// What crosses between Python, the threads and the levels: plain structs of addresses and sizes.
// Sizes and strides count elements. All addresses are checked by the Python wrapper.
#pragma once

#include <cstdint>

enum DType : int64_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

// out[t] = out[t] · scale + shift + LoRA(x[t]) for the tokens of every tile.
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
  // [modules, 2]: addresses of fp32 scale and shift of a module's outputs, 0 for none; absent: no module has any
  const int64_t* affines;
};

struct LoraUnit {
  int64_t tile, first, length;  // tokens of a tile that one thread computes
};

// Functions that every level and the threads' code share are in unnamed namespaces, for the reason in lanes.h.
namespace {

// The largest rank of a module's slices.
inline int64_t largest_rank(const LoraCall& call, const LoraTile& tile) {
  const int64_t* ranks = tile.ranks + call.module * call.ranks_stride;
  int64_t largest = 0;
  for (int64_t i = 0; i < call.num_slices; i++) largest = ranks[i] > largest ? ranks[i] : largest;
  return largest;
}

}  // namespace

const int64_t FLOATS_PER_ADDRESS = sizeof(void*) / sizeof(float);
const int64_t PAGE_ROWS = 8;
const int64_t LORA_TOKENS = 16;     // of a unit: their inputs stay in the first cache
const int64_t MIN_LORA_TOKENS = 4;  // of a unit that is cut smaller so that every thread has one

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
  int64_t chunk, kv_head, num_heads, first, length;  // heads of the cache, and queries, that one thread computes
};

const int64_t KEYS = 64;         // of a step of the online softmax
const int64_t QUERY_ROWS = 32;   // about as many rows, queries times group, make a unit

namespace {

// Floats of a unit's keys and values and of its queries, in the form that a level multiplies.
inline int64_t tile_scratch(const AttentionCall& call, int64_t num_rows) {
  return KEYS * (call.head_dim + call.v_head_dim) + (num_rows * call.head_dim + 1) / 2 * 2;  // addresses follow
}

}  // namespace

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

// y = x Wᵀ + bias for packed weights; see gemm.h.
struct GemmCall {
  int64_t dtype;
  const void* x;  // [num_tokens, in_features]
  int64_t x_stride;
  const void* weights;  // packed
  const void* bias;     // fp32, as many as all panels have columns, or absent
  void* out;            // [num_tokens, out_features]
  int64_t out_stride, in_features, out_features, num_tokens;
};

const int64_t PANEL = 32;       // columns that are computed together
const int64_t BLOCK_ROWS = 192; // rows that stay in the second cache while the panels pass

// Memory that lies together, and what of it a thread has asked for: see ahead.h.
struct Run {
  const char* begin;
  int64_t lines;
};

const int64_t LINE_BYTES = 64;  // of a cache

struct Ahead {
  const Run *run, *end;
  int64_t line;  // of `run`: the next one
};

struct Norm {
  const void* weight;  // absent: no norm
  int64_t size;
  double eps, offset;
};

enum Activation : int64_t { SILU = 0, GELU_TANH = 1 };

// One decoder layer over the tokens of a step; see layer.h.
struct LayerCall {
  int64_t dtype, num_tokens, hidden;
  const void* x;  // [num_tokens, hidden], contiguous: the residual stream
  void* out;      // the same after this layer
  Norm before_attention, after_attention, before_mlp, after_mlp, query_norm, key_norm;
  GemmCall qkv, o, gate_up, down;  // x and out are set by whoever made the buffers
  const LoraCall *qkv_lora, *o_lora, *gate_up_lora, *down_lora;  // absent: no adapter changes it in this step
  AttentionCall attention;  // reads the output of qkv
  const void *cos, *sin;    // [num_tokens, rotary_dim] of the dtype, absent: positions are not rotated in
  int64_t rotary_dim;
  int64_t activation;
  double residual;  // factor of what a half of the layer adds
  void *normed, *added;  // [num_tokens, hidden]
};

// One matrix of an adapter on its way into the rank pool's layout; see pack_adapter.h. Good for every adapter of
// these shapes, so it says where the matrix lies in memory that is given beside it.
struct PackCall {
  int64_t from_dtype, to_dtype;  // from may be FLOAT16
  int64_t source, from;          // bytes from the beginning of that source to [num_rows, num_columns]
  int64_t num_rows, num_columns;
  int64_t to, to_stride, turned;  // numbers from the target's beginning; turned: to [num_columns, num_rows]
  double scaling;                 // of a turned matrix
};

// One adapter's memory for one call.
struct PackPlace {
  const char* from;  // aligned or not
  char* to;
  const float* scales;  // [num_rows] of a turned matrix, or absent
  bool is_large;        // whether the adapter is more than the second cache keeps
};

// One instruction set's version of everything.
struct Level {
  void (*shrink)(const LoraCall&, const LoraUnit&, float* hidden);
  void (*expand)(const LoraCall&, const LoraUnit&, const float* hidden, float* scratch);
  void (*write)(const AttentionCall&, int64_t token);
  void (*attend)(const AttentionCall&, const AttentionUnit&, float* scratch);
  void (*norm)(const NormCall&, int64_t row);
  void (*gate)(const GateCall&, int64_t row);
  void (*gemm)(const GemmCall&, int64_t panel, int64_t first_row, int64_t num_rows, Ahead&);
  void (*before_attention)(const LayerCall&, int64_t row);
  void (*rotate)(const LayerCall&, int64_t row);
  void (*between)(const LayerCall&, int64_t row);
  void (*activate)(const LayerCall&, int64_t row);
  void (*end)(const LayerCall&, int64_t row);
  bool (*pack_adapter)(const PackCall&, const PackPlace&);  // whether all numbers it wrote are finite
};
