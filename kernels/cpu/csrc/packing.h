// Brings weights into the form that gemm.h describes; bits are moved, never computed with.
#pragma once

#include <cstdint>

#include "calls.h"

namespace {

inline int64_t packed_panel(int64_t dtype, int64_t in_features) {
  return (dtype == FLOAT32 ? in_features : (in_features + 1) / 2 * 2) * PANEL;
}

// INPUTS consecutive inputs of a column lie together.
template <class Word, int INPUTS>
void pack_panels(const void* weight, int64_t stride, int64_t out_features, int64_t in_features, void* packed,
                 int64_t num_threads) {
  const int64_t panels = (out_features + PANEL - 1) / PANEL, steps = (in_features + INPUTS - 1) / INPUTS;
#pragma omp parallel for num_threads(int(num_threads))
  for (int64_t panel = 0; panel < panels; panel++) {
    Word* to = static_cast<Word*>(packed) + panel * steps * INPUTS * PANEL;
    for (int64_t column = 0; column < PANEL; column++) {
      const int64_t row = panel * PANEL + column;
      const Word* from = static_cast<const Word*>(weight) + row * stride;
      for (int64_t i = 0; i < steps * INPUTS; i++)
        to[(i / INPUTS * PANEL + column) * INPUTS + i % INPUTS] =
            row < out_features && i < in_features ? from[i] : Word(0);
    }
  }
}

}  // namespace
