// Decoder layers, from the residual stream to the residual stream, in one parallel region:
//
//   q, k, v = norm(x) Wᵀ + LoRA;  rotate q, k;  write k, v;  a = attention
//   x += norm(a Wᵀ + LoRA);  gate, up = norm(x) Wᵀ + LoRA;  x += norm((act(gate) up) Wᵀ + LoRA)
//
// Threads share each phase and wait for each other after it; which thread computes what changes no number.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <vector>

#include "ahead.h"
#include "clock.h"
#include "units.h"

namespace {

// The part of `count` that falls to one of the threads.
struct Share {
  int64_t begin, end;
  explicit Share(int64_t count) : Share(count, omp_get_thread_num(), omp_get_num_threads()) {}
  Share(int64_t count, int64_t thread, int64_t threads)
      : begin(count * thread / threads), end(count * (thread + 1) / threads) {}
};

inline int64_t num_panels(const GemmCall& call) { return (call.out_features + PANEL - 1) / PANEL; }

// Who computes which panel of a product: each thread its own share, then what others have not begun. A
// thread that another process keeps from its core would else keep all the others waiting.
class Panels {
 public:
  Panels(const GemmCall& call, int64_t num_threads) : call(call), next(num_threads) {}

  // Called by every thread of a region; a thread has the same panels for every block of rows.
  void run(const Level& kernels, Ahead ahead) {
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    const int64_t blocks = (call.num_tokens + BLOCK_ROWS - 1) / BLOCK_ROWS;
    for (int64_t t = 0; t < threads; t++) {
      const int64_t owner = (thread + t) % threads;
      const Share share(num_panels(call), owner, threads);
      const int64_t size = share.end - share.begin;
      for (int64_t i; (i = next[owner].fetch_add(1)) < blocks * size;) {
        const int64_t row = i / size * BLOCK_ROWS;
        kernels.gemm(call, share.begin + i % size, row, std::min(BLOCK_ROWS, call.num_tokens - row), ahead);
      }
    }
  }

 private:
  const GemmCall& call;
  std::vector<std::atomic<int64_t>> next;  // of each thread's share
};

template <class Row>
inline void share_rows(int64_t num_rows, const Row& row) {
  const Share rows(num_rows);
  for (int64_t i = rows.begin; i < rows.end; i++) row(i);
}

// What a thread of a region has of its own.
struct Worker {
  const Level& kernels;
  Runs runs;
  PhaseClock clock;

  Worker(const Level& kernels, double* spent_s)
      : kernels(kernels), runs(omp_get_thread_num(), omp_get_num_threads()), clock(spent_s) {}
};

// A product, and the LoRA of those tokens that have an adapter which changes it.
struct Product {
  Panels panels;
  const LoraCall* lora;
  std::vector<LoraUnit> units;
  std::atomic<int64_t> next{0};

  Product(const GemmCall& gemm, const LoraCall* lora, int64_t num_threads) : panels(gemm, num_threads), lora(lora) {
    if (lora) lora_units(*lora, num_threads, units);
  }

  // `then`: the attention that comes after this product and has none of its own before it
  void run(Worker& worker, float* scratch, const AttentionCall* then = nullptr) {
    worker.runs.clear();
    if (lora) worker.runs.add(*lora);
    if (then) worker.runs.add(*then);
    panels.run(worker.kernels, worker.runs.ahead());
#pragma omp barrier
    worker.clock.ended(LINEARS);
    if (units.empty()) return;
    for (int64_t i; (i = next.fetch_add(1)) < int64_t(units.size());) worker.kernels.lora(*lora, units[i], scratch);
#pragma omp barrier
    worker.clock.ended(LORA);
  }
};

class Layer {
 public:
  // `following`: the layer after it, if there is one
  Layer(const LayerCall& call, const LayerCall* following, int64_t num_threads)
      : call(call),
        following(following),
        qkv(call.qkv, call.qkv_lora, num_threads),
        o(call.o, call.o_lora, num_threads),
        gate_up(call.gate_up, call.gate_up_lora, num_threads),
        down(call.down, call.down_lora, num_threads) {
    attention_units(call.attention, num_threads, units);
    scratch_floats = attention_scratch(call.attention);
    for (const LoraCall* lora : {call.qkv_lora, call.o_lora, call.gate_up_lora, call.down_lora})
      if (lora) scratch_floats = std::max(scratch_floats, lora_scratch(*lora));
  }

  // Called by every thread of a region.
  void run(Worker& worker) {
    const Level& kernels = worker.kernels;
    float* scratch = own_scratch(scratch_floats);
    share_rows(call.num_tokens, [&](int64_t row) { kernels.before_attention(call, row); });
#pragma omp barrier
    worker.clock.ended(ROWS);
    qkv.run(worker, scratch);
    share_rows(call.num_tokens, [&](int64_t row) {
      kernels.rotate(call, row);
      kernels.write(call.attention, row);
    });
#pragma omp barrier
    worker.clock.ended(ROWS);
    for (int64_t i; (i = next.fetch_add(1)) < int64_t(units.size());) kernels.attend(call.attention, units[i], scratch);
#pragma omp barrier
    worker.clock.ended(ATTENTION);
    o.run(worker, scratch);
    share_rows(call.num_tokens, [&](int64_t row) { kernels.between(call, row); });
#pragma omp barrier
    worker.clock.ended(ROWS);
    gate_up.run(worker, scratch);
    share_rows(call.num_tokens, [&](int64_t row) { kernels.activate(call, row); });
#pragma omp barrier
    worker.clock.ended(ROWS);
    down.run(worker, scratch, following ? &following->attention : nullptr);
    // A thread has the same rows in the next layer's first phase: nobody waits for anybody here.
    share_rows(call.num_tokens, [&](int64_t row) { kernels.end(call, row); });
    worker.clock.ended(ROWS);
  }

 private:
  const LayerCall &call, *following;
  Product qkv, o, gate_up, down;
  std::vector<AttentionUnit> units;
  std::atomic<int64_t> next{0};
  size_t scratch_floats;
};

// Layers that follow each other, in one parallel region. `spent_s`: seconds by Phase are added to it, if there.
void run_layers(const Level& kernels, const LayerCall* const* calls, int64_t num_layers, int64_t num_threads,
                double* spent_s) {
  std::deque<Layer> layers;
  for (int64_t i = 0; i < num_layers; i++)
    layers.emplace_back(*calls[i], i + 1 < num_layers ? calls[i + 1] : nullptr, num_threads);
#pragma omp parallel num_threads(int(num_threads))
  {
    Worker worker(kernels, spent_s);
    for (Layer& layer : layers) layer.run(worker);
  }
}

}  // namespace
