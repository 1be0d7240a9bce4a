"""`make bench-smoke`: decode speed through the whole stack, as ratios, in under three minutes.

16 streams on three adapters and the base model, bf16, through client → control plane → worker,
against the same engine without gRPC, without adapters, and against transformers and PEFT. Systems
take turns within each round, and a ratio is the median of its rounds' ratios.
"""

import json
import os
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.benchmarks.systems import InProcess, Peft, System, Transformers, WholeStack
from tests.benchmarks.workload import Workload, median_ratio, mixed
from tests.integration.stack import ROOT, Stack
from tests.oracle import ADAPTERS_DIR, MODEL_DIR

NUM_STREAMS = 16
NUM_TOKENS = 48
NUM_ROUNDS = 5
ENGINE = {"max_loras": 4, "max_lora_rank": 16, "max_num_seqs": 16, "kv_cache_bytes": 256 << 20}
OUTPUT = ROOT / "build/bench.json"


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio of two systems' rates, and the goal it must reach (None: only printed)."""

    key: str
    of: str
    to: str
    goal: float | None


RATIOS = (
    Ratio("stack_vs_engine", "whole stack, 3 adapters + base", "engine in process, 3 adapters + base", 0.9),
    Ratio("stack_lora_vs_base", "whole stack, 3 adapters + base", "whole stack, base only", None),
    Ratio("stack_vs_hf", "whole stack, 3 adapters + base", "transformers, base only", 1.0),
    Ratio("stack_vs_peft", "whole stack, 3 adapters + base", "PEFT, 3 adapters + base", 3.0),
)


def measure(systems: dict[str, tuple[System, Workload]], num_rounds: int) -> dict[str, list[float]]:
    """Rates by system, one a round; every system runs once before, uncounted."""
    rates: dict[str, list[float]] = {name: [] for name in systems}
    for number in range(-1, num_rounds):
        for name, (system, workload) in systems.items():
            rate = system.rate(workload)
            if number >= 0:
                rates[name].append(rate)
        print(f"round {number + 1} of {num_rounds}", file=sys.stderr, flush=True)
    return rates


def main() -> int:
    """Measure, print the table, write the figures; 1 when a goal is missed."""
    torch.set_num_threads(os.cpu_count() or 1)
    workload = mixed(NUM_STREAMS, NUM_TOKENS)
    with (
        tempfile.TemporaryDirectory() as directory,
        Stack(Path(directory), model=MODEL_DIR, adapter_roots=[ADAPTERS_DIR], **ENGINE) as stack,
    ):
        whole_stack = WholeStack(stack)
        rates = measure(
            {
                "whole stack, 3 adapters + base": (whole_stack, workload),
                "engine in process, 3 adapters + base": (InProcess(**ENGINE), workload),
                "whole stack, base only": (whole_stack, workload.base_only()),
                "transformers, base only": (Transformers(torch.bfloat16), workload.base_only()),
                "PEFT, 3 adapters + base": (Peft(torch.bfloat16), workload),
            },
            NUM_ROUNDS,
        )
    return report(rates)


def report(rates: dict[str, list[float]]) -> int:
    """Print and write; return the exit code."""
    print(f"\ndecode tokens/s, {NUM_STREAMS} streams, bf16, {os.cpu_count()} cores (median of {NUM_ROUNDS})")
    for name, values in rates.items():
        print(f"  {name:<40} {statistics.median(values):8.1f}")
    figures = {ratio.key: median_ratio(rates[ratio.of], rates[ratio.to]) for ratio in RATIOS}
    print("\nratio")
    for ratio in RATIOS:
        goal = "" if ratio.goal is None else f"  goal ≥ {ratio.goal}"
        print(f"  {ratio.key:<20} {figures[ratio.key]:6.2f}{goal}   {ratio.of} / {ratio.to}")
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(figures, indent=2) + "\n")
    missed = [ratio.key for ratio in RATIOS if ratio.goal is not None and figures[ratio.key] < ratio.goal]
    if missed:
        print(f"missed: {', '.join(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
