// Decoder layers, from the residual stream to the residual stream, in one parallel region:
//
//   q, k, v = norm(x) Wᵀ + LoRA;  rotate q, k;  write k, v;  a = attention
//   x += norm(a Wᵀ + LoRA);  gate, up = norm(x) Wᵀ + LoRA;  x += norm((act(gate) up) Wᵀ + LoRA)
//
// Threads share each phase and wait for each other after it; which thread computes what changes no number.
#pragma once

#include <algorithm>
#include <atomic>
#include <deque>
#include <vector>

#include "product.h"

namespace {

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
    for (const LoraCall* lora : {call.qkv_lora, call.o_lora, call.gate_up_lora, call.down_lora}) {
      if (!lora) continue;
      scratch_floats = std::max(scratch_floats, expand_scratch(*lora));
      num_hidden = std::max(num_hidden, hidden_floats(*lora, num_adapted(*lora)));
    }
  }

  size_t scratch_floats, num_hidden = 0;  // of each thread, and of all together

  // Called by every thread of a region.
  void run(Worker& worker) {
    const Level& kernels = worker.kernels;
    share_rows(call.num_tokens, [&](int64_t row) { kernels.before_attention(call, row); });
#pragma omp barrier
    worker.clock.ended(ROWS);
    qkv.run(worker);
    share_rows(call.num_tokens, [&](int64_t row) {
      kernels.rotate(call, row);
      kernels.write(call.attention, row);
    });
#pragma omp barrier
    worker.clock.ended(ROWS);
    for (int64_t i; (i = next.fetch_add(1)) < int64_t(units.size());) kernels.attend(call.attention, units[i], worker.scratch);
#pragma omp barrier
    worker.clock.ended(ATTENTION);
    o.run(worker);
    share_rows(call.num_tokens, [&](int64_t row) { kernels.between(call, row); });
#pragma omp barrier
    worker.clock.ended(ROWS);
    gate_up.run(worker);
    share_rows(call.num_tokens, [&](int64_t row) { kernels.activate(call, row); });
#pragma omp barrier
    worker.clock.ended(ROWS);
    down.run(worker, following ? &following->attention : nullptr);
    // A thread has the same rows in the next layer's first phase: nobody waits for anybody here.
    share_rows(call.num_tokens, [&](int64_t row) { kernels.end(call, row); });
    worker.clock.ended(ROWS);
  }

 private:
  const LayerCall &call, *following;
  Product qkv, o, gate_up, down;
  std::vector<AttentionUnit> units;
  std::atomic<int64_t> next{0};
};

// Layers that follow each other, in one parallel region. `spent_s`: seconds by Phase are added to it, if there.
void run_layers(const Level& kernels, const LayerCall* const* calls, int64_t num_layers, int64_t num_threads,
                double* spent_s) {
  std::deque<Layer> layers;
  for (int64_t i = 0; i < num_layers; i++)
    layers.emplace_back(*calls[i], i + 1 < num_layers ? calls[i + 1] : nullptr, num_threads);
  size_t scratch_floats = 0, num_hidden = 0;
  for (const Layer& layer : layers) {
    scratch_floats = std::max(scratch_floats, layer.scratch_floats);
    num_hidden = std::max(num_hidden, layer.num_hidden);
  }
  float* hidden = own_floats<HIDDEN>(num_hidden);
#pragma omp parallel num_threads(int(num_threads))
  {
    Worker worker(kernels, hidden, own_floats<SCRATCH>(scratch_floats), spent_s);
    for (Layer& layer : layers) layer.run(worker);
  }
}

}  // namespace
