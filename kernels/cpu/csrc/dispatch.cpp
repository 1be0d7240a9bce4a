// The library's C interface: splits a call into units and gives them to OpenMP's threads.
//
// libgomp is torch's own copy, already in the process, so both share one set of threads. A unit is
// computed by one thread from begin to end: how many threads there are changes no number.
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "calls.h"

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
    thread_local std::vector<float> scratch;
    if (scratch.size() < scratch_floats) scratch.resize(scratch_floats);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < count; i++) run(units[i], scratch.data());
  }
}

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
  for (int64_t tile = 0; tile < call->num_tiles; tile++)
    for (int64_t first = 0; first < call->tiles[tile].length; first += LORA_TOKENS)
      units.push_back({tile, first, std::min(LORA_TOKENS, call->tiles[tile].length - first)});
  const size_t scratch = size_t(call->max_rank) * (LORA_TOKENS + FLOATS_PER_ADDRESS);
  const Level& kernels = *LEVELS[level];
  each(units, num_threads, scratch, [&](const LoraUnit& unit, float* own) { kernels.lora(*call, unit, own); });
}

void attention(int64_t level, int64_t num_threads, const AttentionCall* call) {
  const Level& kernels = *LEVELS[level];
  for (int64_t token = 0; token < call->num_tokens; token++) kernels.write(*call, token);
  const int64_t group = call->num_heads / call->kv_heads;
  const int64_t queries = std::max<int64_t>(1, QUERY_ROWS / group);
  std::vector<AttentionUnit> units;
  for (int64_t chunk = 0; chunk < call->num_chunks; chunk++)
    for (int64_t first = 0; first < call->chunks[chunk].length; first += queries)
      for (int64_t head = 0; head < call->kv_heads; head++)
        units.push_back({chunk, head, first, std::min(queries, call->chunks[chunk].length - first)});
  const size_t rows = size_t(queries * group);
  const size_t scratch = rows * (KEYS + call->v_head_dim + 2 + 2 * FLOATS_PER_ADDRESS);
  each(units, num_threads, scratch,
       [&](const AttentionUnit& unit, float* own) { kernels.attend(*call, unit, own); });
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
}
