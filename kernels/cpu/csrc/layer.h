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

#include "units.h"

namespace {

// The part of `count` that falls to one of the threads.
struct Share {
  int64_t begin, end;
  explicit Share(int64_t count) {
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    begin = count * thread / threads;
    end = count * (thread + 1) / threads;
  }
};

inline int64_t num_panels(const GemmCall& call) { return (call.out_features + PANEL - 1) / PANEL; }

// Called by every thread of a region; a thread has the same panels for every block of rows.
inline void gemm_share(const Level& kernels, const GemmCall& call) {
  const Share panels(num_panels(call));
  for (int64_t row = 0; row < call.num_tokens; row += BLOCK_ROWS)
    for (int64_t panel = panels.begin; panel < panels.end; panel++)
      kernels.gemm(call, panel, row, std::min(BLOCK_ROWS, call.num_tokens - row));
}

template <class Row>
inline void share_rows(int64_t num_rows, const Row& row) {
  const Share rows(num_rows);
  for (int64_t i = rows.begin; i < rows.end; i++) row(i);
}

// A product, and the LoRA of those tokens that have an adapter which changes it.
struct Product {
  const GemmCall& gemm;
  const LoraCall* lora;
  std::vector<LoraUnit> units;
  std::atomic<int64_t> next{0};

  Product(const GemmCall& gemm, const LoraCall* lora, int64_t num_threads) : gemm(gemm), lora(lora) {
    if (lora) lora_units(*lora, num_threads, units);
  }

  void run(const Level& kernels, float* scratch) {
    gemm_share(kernels, gemm);
#pragma omp barrier
    if (units.empty()) return;
    for (int64_t i; (i = next.fetch_add(1)) < int64_t(units.size());) kernels.lora(*lora, units[i], scratch);
#pragma omp barrier
  }
};

class Layer {
 public:
  Layer(const LayerCall& call, int64_t num_threads)
      : call(call),
        qkv(call.qkv, call.qkv_lora, num_threads),
        o(call.o, call.o_lora, num_threads),
        gate_up(call.gate_up, call.gate_up_lora, num_threads),
        down(call.down, call.down_lora, num_threads) {
    attention_units(call.attention, units);
    scratch_floats = attention_scratch(call.attention);
    for (const LoraCall* lora : {call.qkv_lora, call.o_lora, call.gate_up_lora, call.down_lora})
      if (lora) scratch_floats = std::max(scratch_floats, lora_scratch(*lora));
  }

  // Called by every thread of a region.
  void run(const Level& kernels) {
    float* scratch = own_scratch(scratch_floats);
    share_rows(call.num_tokens, [&](int64_t row) { kernels.before_attention(call, row); });
#pragma omp barrier
    qkv.run(kernels, scratch);
    share_rows(call.num_tokens, [&](int64_t row) {
      kernels.rotate(call, row);
      kernels.write(call.attention, row);
    });
#pragma omp barrier
    for (int64_t i; (i = next.fetch_add(1)) < int64_t(units.size());) kernels.attend(call.attention, units[i], scratch);
#pragma omp barrier
    o.run(kernels, scratch);
    share_rows(call.num_tokens, [&](int64_t row) { kernels.between(call, row); });
#pragma omp barrier
    gate_up.run(kernels, scratch);
    share_rows(call.num_tokens, [&](int64_t row) { kernels.activate(call, row); });
#pragma omp barrier
    down.run(kernels, scratch);
    // A thread has the same rows in the next layer's first phase: nobody waits for anybody here.
    share_rows(call.num_tokens, [&](int64_t row) { kernels.end(call, row); });
  }

 private:
  const LayerCall& call;
  Product qkv, o, gate_up, down;
  std::vector<AttentionUnit> units;
  std::atomic<int64_t> next{0};
  size_t scratch_floats;
};

// Layers that follow each other, in one parallel region.
void run_layers(const Level& kernels, const LayerCall* const* calls, int64_t num_layers, int64_t num_threads) {
  std::deque<Layer> layers;
  for (int64_t i = 0; i < num_layers; i++) layers.emplace_back(*calls[i], num_threads);
#pragma omp parallel num_threads(int(num_threads))
  for (Layer& layer : layers) layer.run(kernels);
}

}  // namespace
