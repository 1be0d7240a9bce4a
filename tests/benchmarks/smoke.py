"""`make bench-smoke`: throughput through the whole stack, as ratios, in under three minutes.

16 streams on three adapters and the base model, bf16, through client → control plane → worker,
against the same engine without gRPC, without adapters, and against transformers and PEFT. Systems
take turns within each round, and a ratio is the median of its rounds' ratios.
"""

import os
import sys
import tempfile
from pathlib import Path

import torch

from tests.benchmarks.goals import report
from tests.benchmarks.interleaved import Measure, Rounds, interleave
from tests.benchmarks.peers import Peft, Transformers
from tests.benchmarks.systems import InProcess, System, WholeStack
from tests.benchmarks.workload import ADAPTERS, Workload, demo_adapter, mixed
from tests.integration.stack import Stack
from tests.oracle import ADAPTERS_DIR, MODEL_DIR

NUM_STREAMS = 16
NUM_TOKENS = 48
NUM_ROUNDS = 5
ENGINE = {
    "dtype": "bfloat16",
    "max_loras": 4,
    "max_lora_rank": 16,
    "max_num_seqs": 16,
    "kv_cache_bytes": 256 << 20,
}


# Key of each figure: the system measured, and the one it is compared with. Goals are in goals.py.
RATIOS = {
    "stack_vs_engine": ("whole stack, 3 adapters + base", "engine in process, 3 adapters + base"),
    "stack_lora_vs_base": ("whole stack, 3 adapters + base", "whole stack, base only"),
    "stack_vs_hf": ("whole stack, 3 adapters + base", "transformers, base only"),
    "stack_vs_peft": ("whole stack, 3 adapters + base", "PEFT, 3 adapters + base"),
}


def main() -> int:
    """Measure, print the table, write the figures; 1 when a goal is missed."""
    torch.set_num_threads(os.cpu_count() or 1)
    adapters = [demo_adapter(*adapter) for adapter in ADAPTERS]
    workload = mixed(NUM_STREAMS, NUM_TOKENS)
    with (
        tempfile.TemporaryDirectory() as directory,
        Stack(Path(directory), model=MODEL_DIR, adapter_roots=[ADAPTERS_DIR], **ENGINE) as stack,
    ):
        whole_stack = WholeStack(stack, adapters)
        rounds = interleave(
            {
                "whole stack, 3 adapters + base": _decoding(whole_stack, workload),
                "engine in process, 3 adapters + base": _decoding(
                    InProcess(adapter_roots=(ADAPTERS_DIR,), **ENGINE), workload
                ),
                "whole stack, base only": _decoding(whole_stack, workload.base_only()),
                "transformers, base only": _decoding(Transformers(), workload.base_only()),
                "PEFT, 3 adapters + base": _decoding(Peft(adapters), workload),
            },
            NUM_ROUNDS,
            title="smoke",
        )
    return report(figures_of(rounds))


def _decoding(system: System, workload: Workload) -> Measure:
    return lambda number: system.run(workload).decode_rate


def figures_of(rounds: Rounds) -> dict[str, float]:
    """Print the rates; the figures by key."""
    print(f"\ndecode, {NUM_STREAMS} streams, bf16, {os.cpu_count()} cores")
    rounds.describe("tokens/s")
    return {key: rounds.ratio(of, to) for key, (of, to) in RATIOS.items()}


if __name__ == "__main__":
    sys.exit(main())
