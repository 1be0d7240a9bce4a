"""What the way through the processes costs: 64 streams over the whole stack against the engine alone.

Total tokens/s of the same base-only prompts, client → control plane → worker over gRPC, each a process, on
the cores that the engine alone has to itself in the other round.
"""

import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.cpu_time import CpuTime, cpu_time
from tests.benchmarks.interleaved import interleave
from tests.benchmarks.systems import InProcess, WholeStack
from tests.benchmarks.workload import Workload, random_workload
from tests.integration.stack import Stack
from tests.oracle import MODEL_DIR

NUM_ROUNDS = 5
NUM_STREAMS = 64
PROMPT_TOKENS, NEW_TOKENS = 64, 32
ENGINE = {"dtype": "bfloat16", "max_num_seqs": NUM_STREAMS, "kv_cache_bytes": 256 << 20}
STACK, ALONE = "whole stack, 64 streams", "engine in process, 64 streams"


def measure() -> dict[str, float]:
    """serve_ratio."""
    with (
        tempfile.TemporaryDirectory() as directory,
        Stack(Path(directory), model=MODEL_DIR, adapter_roots=[], **ENGINE) as stack,
    ):
        whole_stack, engine = WholeStack(stack), InProcess(**ENGINE)
        pids = (os.getpid(), stack.control_planes[0].pid, stack.workers[0].pid)
        spent: list[list[CpuTime]] = []

        def serve(number: int) -> float:
            before = [cpu_time(pid) for pid in pids]
            rate = whole_stack.run(_workload(number)).total_rate
            spent.append([cpu_time(pid).since(then) for pid, then in zip(pids, before, strict=True)])
            return rate

        rounds = interleave(
            {STACK: serve, ALONE: lambda number: engine.run(_workload(number)).total_rate},
            NUM_ROUNDS,
            title="serve_ratio",
        )
        engine.close()
    rounds.describe("tokens/s")
    _describe(spent)
    return {"serve_ratio": rounds.ratio(STACK, ALONE)}


def _describe(spent: Sequence[Sequence[CpuTime]]) -> None:
    """What serving takes from the cores that the step would have: the profile of a ratio that misses."""
    client, control_plane, worker = ([each[i] for each in spent] for i in range(3))
    print(
        f"  CPU time a token: client {_each_us([one.all_s for one in client]):.0f} µs, "
        f"control plane {_each_us([one.all_s for one in control_plane]):.0f} µs, "
        f"event loop of the worker {_each_us([one.first_s for one in worker]):.0f} µs"
    )


def _each_us(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) / (NUM_STREAMS * NEW_TOKENS) * 1e6


def _workload(number: int) -> Workload:
    return random_workload(
        NUM_STREAMS, prompt_tokens=PROMPT_TOKENS, num_tokens=NEW_TOKENS, seed=f"serve {number}"
    )
