// The library's C interface: splits a call into units and gives them to OpenMP's threads.
//
// libgomp is torch's own copy, already in the process, so both share one set of threads. A unit is
// computed by one thread from begin to end: how many threads there are changes no number.
#include <omp.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstdint>
#include <vector>

#include "layer.h"
#include "packing.h"
#include "units.h"

#if defined(__x86_64__)
extern const Level avx512_bf16, avx512, avx2;
#endif
extern const Level plain;

namespace {

const Level* const LEVELS[] = {
    &plain,
#if defined(__x86_64__)
    &avx2, &avx512, &avx512_bf16,
#endif
};

// Calls of a few microseconds are not worth waking a thread.
template <class Unit, class Run>
void each(const std::vector<Unit>& units, int64_t num_threads, size_t scratch_floats, const Run& run) {
  const int64_t count = int64_t(units.size());
#pragma omp parallel num_threads(int(std::min(num_threads, std::max<int64_t>(count, 1)))) if (count > 1)
  {
    float* scratch = own_floats<SCRATCH>(scratch_floats);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < count; i++) run(units[i], scratch);
  }
}

int64_t element_bytes(const PackCall& call) { return call.to_dtype == FLOAT32 ? 4 : 2; }
int64_t matrix_bytes(const PackCall& call) { return call.num_rows * call.num_columns * element_bytes(call); }

const int64_t LARGE_BYTES = 2 << 20;  // of a packed adapter: about a second cache
const int64_t MIN_ROWS = 16;  // rows that are worth a second thread

}  // namespace

extern "C" {

// The best level of this machine: an index into plain, avx2, avx512, avx512_bf16.
int64_t best_level() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return __builtin_cpu_supports("avx512bf16") ? 3 : 2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
  return 0;
}

void lora(int64_t level, int64_t num_threads, const LoraCall* call) {
  std::vector<LoraUnit> units;
  lora_units(*call, num_threads, units);
  const Level& kernels = *LEVELS[level];
  const size_t hidden = hidden_floats(*call, LORA_TOKENS);
  each(units, num_threads, hidden + expand_scratch(*call), [&](const LoraUnit& unit, float* scratch) {
    kernels.shrink(*call, unit, scratch);
    kernels.expand(*call, unit, scratch, scratch + hidden);
  });
}

void attention(int64_t level, int64_t num_threads, const AttentionCall* call) {
  const Level& kernels = *LEVELS[level];
  for (int64_t token = 0; token < call->num_tokens; token++) kernels.write(*call, token);
  std::vector<AttentionUnit> units;
  attention_units(*call, num_threads, units);
  each(units, num_threads, attention_scratch(*call),
       [&](const AttentionUnit& unit, float* scratch) { kernels.attend(*call, unit, scratch); });
}

void norm(int64_t level, int64_t num_threads, const NormCall* call) {
  const Level& kernels = *LEVELS[level];
#pragma omp parallel for num_threads(int(num_threads)) if (call->num_rows > MIN_ROWS)
  for (int64_t row = 0; row < call->num_rows; row++) kernels.norm(*call, row);
}

void gate(int64_t level, int64_t num_threads, const GateCall* call) {
  const Level& kernels = *LEVELS[level];
#pragma omp parallel for num_threads(int(num_threads)) if (call->num_rows > MIN_ROWS)
  for (int64_t row = 0; row < call->num_rows; row++) kernels.gate(*call, row);
}

void gemm(int64_t level, int64_t num_threads, const GemmCall* call) {
  Panels panels(*call, num_threads);
#pragma omp parallel num_threads(int(num_threads))
  panels.run(*LEVELS[level], Ahead{}, [](int64_t, int64_t, Ahead&) {});
}

void layers(int64_t level, int64_t num_threads, const LayerCall* const* calls, int64_t num_layers,
            double* spent_s) {
  run_layers(*LEVELS[level], calls, num_layers, num_threads, spent_s);
}

// Packs an adapter's matrices on the calling thread alone: the first whose numbers are not all finite, or -1.
int64_t pack_adapter(int64_t level, const PackCall* calls, int64_t num_calls, const char* const* sources, char* to,
                     const float* const* scales) {
  int64_t num_bytes = 0, unfit = -1;
  for (int64_t i = 0; i < num_calls; i++) num_bytes += matrix_bytes(calls[i]);
  for (int64_t i = 0; i < num_calls && unfit < 0; i++) {
    const PackCall& call = calls[i];
    const PackPlace place = {sources[call.source] + call.from, to + call.to * element_bytes(call),
                             scales ? scales[i] : nullptr, num_bytes > LARGE_BYTES};
    if (!LEVELS[level]->pack_adapter(call, place)) unfit = i;
  }
#if defined(__x86_64__)
  _mm_sfence();  // what was streamed is there for whoever hears of it
#endif
  return unfit;
}

// Numbers that the packed form of a weight [out_features, in_features] has.
int64_t packed_size(int64_t dtype, int64_t out_features, int64_t in_features) {
  return packed_panel(dtype, in_features) * ((out_features + PANEL - 1) / PANEL);
}

// From rows `stride` numbers apart to the form that gemm.h reads.
void pack(int64_t dtype, int64_t num_threads, const void* weight, int64_t stride, int64_t out_features,
          int64_t in_features, void* packed) {
  if (dtype == FLOAT32)
    pack_panels<uint32_t, 1>(weight, stride, out_features, in_features, packed, num_threads);
  else
    pack_panels<uint16_t, 2>(weight, stride, out_features, in_features, packed, num_threads);
}
}
