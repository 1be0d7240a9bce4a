"""`make bench-smoke`: decode speed through the whole stack, as ratios, in under three minutes.

16 streams on three adapters and the base model, bf16, through client → control plane → worker,
against the same engine without gRPC, without adapters, and against transformers and PEFT. Systems
take turns within each round, and a ratio is the median of its rounds' ratios.
"""

import os
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from tests.benchmarks.goals import report
from tests.benchmarks.systems import InProcess, Peft, System, Transformers, WholeStack
from tests.benchmarks.workload import Workload, median_ratio, mixed
from tests.integration.stack import Stack
from tests.oracle import ADAPTERS_DIR, MODEL_DIR

NUM_STREAMS = 16
NUM_TOKENS = 48
NUM_ROUNDS = 5
ENGINE = {"max_loras": 4, "max_lora_rank": 16, "max_num_seqs": 16, "kv_cache_bytes": 256 << 20}


# Key of each figure: the system measured, and the one it is compared with. Goals are in goals.py.
RATIOS = {
    "stack_vs_engine": ("whole stack, 3 adapters + base", "engine in process, 3 adapters + base"),
    "stack_lora_vs_base": ("whole stack, 3 adapters + base", "whole stack, base only"),
    "stack_vs_hf": ("whole stack, 3 adapters + base", "transformers, base only"),
    "stack_vs_peft": ("whole stack, 3 adapters + base", "PEFT, 3 adapters + base"),
}


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
    return report(figures_of(rates))


def figures_of(rates: dict[str, list[float]]) -> dict[str, float]:
    """Print the rates; the figures by key."""
    print(f"\ndecode tokens/s, {NUM_STREAMS} streams, bf16, {os.cpu_count()} cores (median of {NUM_ROUNDS})")
    for name, values in rates.items():
        print(f"  {name:<40} {statistics.median(values):8.1f}")
    return {key: median_ratio(rates[of], rates[to]) for key, (of, to) in RATIOS.items()}


if __name__ == "__main__":
    sys.exit(main())
