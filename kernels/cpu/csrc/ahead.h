// What the phases after a product will read, as runs of memory: asked for while the product computes.
//
// A thread asks for what it will read itself, as far as that can be known: the second cache, which is its own, holds
// little more than a product's adapters. Nothing here is read: a run may be asked for in vain, or twice.
#pragma once

#include <algorithm>
#include <vector>

#include "calls.h"

namespace {

const int64_t MAX_AHEAD_LINES = (int64_t(4) << 20) / LINE_BYTES;  // of a thread: more would drive out its own

class Runs {
 public:
  Runs(int64_t thread, int64_t num_threads) : thread(thread), num_threads(num_threads) {}

  void clear() {
    runs.clear();
    shrunk.clear();
    lines = 0;
  }

  Ahead ahead() const { return {runs.data(), runs.data() + runs.size(), 0}; }

  // A of the thread's units in the order in which it reads them, then B. What is read soon needs no room for long.
  void add(const LoraCall& call, const std::vector<LoraUnit>& units) {
    const int64_t size = call.pool_dtype == FLOAT32 ? 4 : 2;
    add(call, units, call.a, call.num_slices * call.in_features * size, [&] {
      shrunk.push_back(int64_t(runs.size()));
      return true;
    });
    lines = 0;
    add(call, units, call.b, call.out_features * size, [&] { return lines < MAX_AHEAD_LINES; });
  }

  // After so many of its shrinks the thread need not ask for their A any more.
  void pass(int64_t num_shrinks, Ahead& ahead) const {
    const Run* next = runs.data() + shrunk[num_shrinks - 1];
    if (ahead.run < next) ahead = {next, ahead.end, 0};
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
  // The rows of every unit of the thread, while `more` after one says so.
  template <class More>
  void add(const LoraCall& call, const std::vector<LoraUnit>& units, const void* base, int64_t row, const More& more) {
    const int64_t* before = nullptr;
    for (size_t u = size_t(thread); u < units.size(); u += size_t(num_threads)) {
      const LoraTile& tile = call.tiles[units[u].tile];
      const int64_t rank = tile.pages == before ? 0 : largest_rank(call, tile);
      for (int64_t r = 0; r < rank; r += PAGE_ROWS)
        add(base, tile.pages[r / PAGE_ROWS] * PAGE_ROWS * row, std::min(PAGE_ROWS, rank - r) * row);
      before = tile.pages;
      if (!more()) return;
    }
  }

  void add(const void* base, int64_t offset, int64_t bytes) {
    runs.push_back({static_cast<const char*>(base) + offset, (bytes + LINE_BYTES - 1) / LINE_BYTES});
    lines += runs.back().lines;
  }

  int64_t thread, num_threads, lines = 0;
  std::vector<Run> runs;
  std::vector<int64_t> shrunk;  // runs up to and with each shrink's
};

}  // namespace
