// Where the time of a region goes: what its first thread waits and works in each kind of phase.
#pragma once

#include <omp.h>

namespace {

enum Phase { ROWS, LINEARS, LORA, ATTENTION };  // as native.py counts them

// Of one thread; without a place to count into it does nothing.
class PhaseClock {
 public:
  explicit PhaseClock(double* spent_s) : spent_s(omp_get_thread_num() == 0 ? spent_s : nullptr) {
    if (this->spent_s) since_s = omp_get_wtime();
  }

  // What has passed since the last call was `phase`.
  void ended(Phase phase) {
    if (!spent_s) return;
    const double now_s = omp_get_wtime();
    spent_s[phase] += now_s - since_s;
    since_s = now_s;
  }

 private:
  double* spent_s;
  double since_s = 0;
};

}  // namespace
