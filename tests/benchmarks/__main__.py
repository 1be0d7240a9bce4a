"""`make bench`: every figure of engine and control plane, each with its goal, in under twenty minutes.

    python -m tests.benchmarks            everything
    python -m tests.benchmarks scale      some of the parts; an unknown name lists them

Figures go to build/bench.json, part by part, and plots beside it; the exit code is 1 when a part fails or
a goal is missed by more than noise. Each part has a process of its own: libgomp's threads spin only where
a single thread of the process ever computes in parallel (data_plane/openmp.py), and some parts step
the engine on a thread of its own.
"""

import multiprocessing
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from tests.benchmarks.goals import OUTPUT, keep, report
from tests.benchmarks.parts import PARTS, Figures, measure


def main(arguments: Sequence[str]) -> int:
    """Measure the parts asked for, or all; 2 for an unknown part."""
    unknown = [part for part in arguments if part not in PARTS]
    if unknown:
        print(f"part: {unknown[0]!r} must be one of {', '.join(PARTS)}", file=sys.stderr)
        return 2
    figures: Figures = {}
    failed = []
    for part in arguments or PARTS:
        print(f"\n{part}", flush=True)
        began_s = time.monotonic()
        try:
            measured = _in_process_of_its_own(part)
        except Exception:  # of one part; the others are measured all the same
            traceback.print_exc()
            failed.append(part)
            continue
        keep(measured, OUTPUT)
        figures |= measured
        print(f"  ({time.monotonic() - began_s:.0f} s)", flush=True)
    missed = report(figures)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else missed


def _in_process_of_its_own(part: str) -> Figures:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(measure, part).result()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
