"""`make bench`: the engine's figures as ratios, each with its goal, in about ten minutes.

    python -m tests.benchmarks            everything
    python -m tests.benchmarks scale      some of: pool, waits, flood, disturbance, scale

Figures go to build/bench.json and plots beside it; the exit code is 1 when a goal is missed.
"""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from tests.benchmarks import disturbance, flood, plots, pool_use, scale, starvation
from tests.benchmarks.goals import BUILD_DIR, report

Figures = dict[str, float]


def measure_waits() -> Figures:
    """Starvation, with its plot."""
    figures, waits = starvation.measure()
    plots.plot_waits(waits, BUILD_DIR / "bench-waits.png")
    return figures


def measure_disturbance() -> Figures:
    """Loads, reloads and prefixes, with their plot."""
    figures, gaps = disturbance.measure()
    plots.plot_gaps(gaps, BUILD_DIR / "bench-gaps.png")
    return figures


def measure_scale() -> Figures:
    """1 to 2,000 adapters, with the curve."""
    figures, curve = scale.measure()
    plots.plot_scale(curve, BUILD_DIR / "bench-scale.png")
    return figures


PARTS: Mapping[str, Callable[[], Figures]] = {
    "pool": pool_use.measure,
    "waits": measure_waits,
    "flood": flood.measure,
    "disturbance": measure_disturbance,
    "scale": measure_scale,
}


def main(arguments: Sequence[str]) -> int:
    """Measure the parts asked for, or all; 1 when a goal is missed, 2 for an unknown part."""
    unknown = [part for part in arguments if part not in PARTS]
    if unknown:
        print(f"part: {unknown[0]!r} must be one of {', '.join(PARTS)}", file=sys.stderr)
        return 2
    torch.set_num_threads(os.cpu_count() or 1)
    figures: Figures = {}
    for part in arguments or PARTS:
        print(f"\n{part}", flush=True)
        began_s = time.monotonic()
        figures |= PARTS[part]()
        print(f"  ({time.monotonic() - began_s:.0f} s)", flush=True)
    return report(figures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
