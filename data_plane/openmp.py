"""How OpenMP's threads wait; imported before torch, which reads this once.

Between the parallel regions of one step they spin for some microseconds, since waking a sleeping thread
costs more than the region itself: 16 streams decode at 234 tokens/s when threads sleep at once, at 511
with this spin count, at 533 with five times as much (2 cores). After that they sleep: threads that
spin on (OpenMP's default) take the cores from loader threads and other processes, and one rank-64
read took 11.3 s beside them, 0.3 s beside sleeping ones. libgomp ignores the
spin count while it manages more threads than there are cores, and it manages a team for every thread that
ever computed in parallel: so one thread loads the model and steps it, and loader threads compute alone.
What the environment says already stays.
"""

import os

SPIN_COUNT = 20_000

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
