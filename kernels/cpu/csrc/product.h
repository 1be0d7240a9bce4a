// A product and its LoRA, shared by the threads of a region:
//
//   out = x Wᵀ + bias;  out[t] += (x[t] Aᵀ) B for tokens that have an adapter
//
// Which thread computes what changes no number.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
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

  // Called by every thread of a region; a thread has the same panels for every block of rows. After each of its own
  // it calls between(how many, of how many, ahead).
  template <class Between>
  void run(const Level& kernels, Ahead ahead, const Between& between) {
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    const int64_t blocks = (call.num_tokens + BLOCK_ROWS - 1) / BLOCK_ROWS;
    for (int64_t t = 0; t < threads; t++) {
      const int64_t owner = (thread + t) % threads;
      const Share share(num_panels(call), owner, threads);
      const int64_t size = share.end - share.begin;
      for (int64_t i; (i = next[owner].fetch_add(1)) < blocks * size;) {
        const int64_t row = i / size * BLOCK_ROWS;
        kernels.gemm(call, share.begin + i % size, row, std::min(BLOCK_ROWS, call.num_tokens - row), ahead);
        if (t == 0) between(i + 1, blocks * size, ahead);
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

// What a thread of a region has of its own, and hidden values, which all have together.
struct Worker {
  const Level& kernels;
  Runs runs;
  float *hidden, *scratch;
  PhaseClock clock;

  Worker(const Level& kernels, float* hidden, float* scratch, double* spent_s)
      : kernels(kernels),
        runs(omp_get_thread_num(), omp_get_num_threads()),
        hidden(hidden),
        scratch(scratch),
        clock(spent_s) {}
};

// Units that the threads of a region share, who may be fewer than were asked for: of thread t they are t, t + threads
// and so on, and what one has not begun others take.
class Turns {
 public:
  explicit Turns(int64_t most_threads) : next(most_threads) {}

  // The next unit of a thread, or one past the last.
  int64_t take(int64_t owner, int64_t count) {
    const int64_t unit = owner + next[owner].fetch_add(1) * omp_get_num_threads();
    return std::min(unit, count);
  }

  // Runs what is left, this thread's own first.
  template <class Run>
  void finish(int64_t count, const Run& run) {
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    for (int64_t t = 0; t < threads; t++)
      for (int64_t unit; (unit = take((thread + t) % threads, count)) < count;) run(unit);
  }

 private:
  std::vector<std::atomic<int64_t>> next;  // of each thread's units
};

// A product, and the LoRA of those tokens that have an adapter which changes it. The product is arithmetic and its
// weights come from the caches, an adapter is read once: so the first half of LoRA, which needs nothing of the
// product, is done between panels, and B is asked for meanwhile.
class Product {
 public:
  Product(const GemmCall& gemm, const LoraCall* lora, int64_t num_threads)
      : lora(lora), panels(gemm, num_threads), shrinks(num_threads), expands(num_threads) {
    if (lora) lora_units(*lora, num_threads, units);
  }

  // `then`: the attention that comes after this product and has none of its own before it
  void run(Worker& worker, const AttentionCall* then = nullptr) {
    worker.runs.clear();
    if (!units.empty()) worker.runs.add(*lora, units);
    if (then) worker.runs.add(*then);
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads(), count = int64_t(units.size());
    const int64_t own = (count - thread + threads - 1) / threads;
    int64_t done = 0;
    panels.run(worker.kernels, worker.runs.ahead(), [&](int64_t num_done, int64_t num_panels, Ahead& ahead) {
      for (; done * num_panels < own * num_done; done++) {
        const int64_t unit = shrinks.take(thread, count);
        if (unit < count) shrink(worker, units[unit]);
      }
      if (done) worker.runs.pass(done, ahead);
    });
    shrinks.finish(count, [&](int64_t unit) { shrink(worker, units[unit]); });
#pragma omp barrier
    worker.clock.ended(LINEARS);
    if (units.empty()) return;
    expands.finish(count, [&](int64_t unit) { expand(worker, units[unit]); });
#pragma omp barrier
    worker.clock.ended(LORA);
  }

 private:
  void shrink(const Worker& worker, const LoraUnit& unit) const {
    worker.kernels.shrink(*lora, unit, worker.hidden + hidden_offset(*lora, unit));
  }

  void expand(const Worker& worker, const LoraUnit& unit) const {
    worker.kernels.expand(*lora, unit, worker.hidden + hidden_offset(*lora, unit), worker.scratch);
  }

  const LoraCall* lora;
  std::vector<LoraUnit> units;
  Panels panels;
  Turns shrinks, expands;
};

}  // namespace
