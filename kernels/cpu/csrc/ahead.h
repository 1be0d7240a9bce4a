// What the phases after a product will read, as runs of memory: asked for while the product computes.
//
// A thread asks for its own share (every so many-th tile or chunk); the third cache, which all threads
// share, holds it until then. Nothing here is read: a run may be asked for in vain, or twice.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "calls.h"

namespace {

const int64_t MAX_AHEAD_LINES = (int64_t(4) << 20) / LINE_BYTES;  // of a thread: more would drive out its own

class Runs {
 public:
  Runs(int64_t thread, int64_t num_threads) : thread(thread), num_threads(num_threads) {}

  void clear() {
    runs.clear();
    lines = 0;
  }

  Ahead ahead() const { return {runs.data(), runs.data() + runs.size(), 0}; }

  // A and B of every tile.
  void add(const LoraCall& call) {
    const int64_t size = call.pool_dtype == FLOAT32 ? 4 : 2;
    const int64_t a_row = call.num_slices * call.in_features * size, b_row = call.out_features * size;
    for (int64_t t = thread; t < call.num_tiles && lines < MAX_AHEAD_LINES; t += num_threads) {
      const LoraTile& tile = call.tiles[t];
      if (t >= num_threads && tile.pages == call.tiles[t - num_threads].pages) continue;
      const int64_t* ranks = tile.ranks + call.module * call.ranks_stride;
      const int64_t rank = *std::max_element(ranks, ranks + call.num_slices);
      for (const auto& [base, row] : {std::pair{call.a, a_row}, std::pair{call.b, b_row}})
        for (int64_t r = 0; r < rank; r += PAGE_ROWS)
          add(base, tile.pages[r / PAGE_ROWS] * PAGE_ROWS * row, std::min(PAGE_ROWS, rank - r) * row);
    }
  }

  // Keys and values of every chunk, as far as they were there before the step.
  void add(const AttentionCall& call) {
    const int64_t size = call.dtype == FLOAT32 ? 4 : 2;
    const int64_t k_row = call.kv_heads * call.head_dim * size, v_row = call.kv_heads * call.v_head_dim * size;
    for (int64_t c = thread; c < call.num_chunks; c += num_threads) {
      const AttentionChunk& chunk = call.chunks[c];
      const int64_t seen = call.window ? std::max<int64_t>(0, chunk.past + 1 - call.window) : 0;
      for (int64_t b = seen / call.block_size; b * call.block_size < chunk.past; b++) {
        if (lines >= MAX_AHEAD_LINES) return;
        const int64_t rows = std::min(call.block_size, chunk.past - b * call.block_size);
        const int64_t first = chunk.blocks[b] * call.block_size;
        add(call.k_cache, first * k_row, rows * k_row);
        add(call.v_cache, first * v_row, rows * v_row);
      }
    }
  }

 private:
  void add(const void* base, int64_t offset, int64_t bytes) {
    runs.push_back({static_cast<const char*>(base) + offset, (bytes + LINE_BYTES - 1) / LINE_BYTES});
    lines += runs.back().lines;
  }

  int64_t thread, num_threads, lines = 0;
  std::vector<Run> runs;
};

}  // namespace
