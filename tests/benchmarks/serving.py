"""What the way through the processes costs: 64 streams over the whole stack against the engine alone.

Total tokens/s of the same base-only prompts, client → control plane → worker over gRPC, each a process, on
the cores that the engine alone has to itself in the other round.
"""

import statistics
import tempfile
import time
from pathlib import Path

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
    client_shares: list[float] = []
    with (
        tempfile.TemporaryDirectory() as directory,
        Stack(Path(directory), model=MODEL_DIR, adapter_roots=[], **ENGINE) as stack,
    ):
        whole_stack, engine = WholeStack(stack), InProcess(**ENGINE)

        def serve(number: int) -> float:
            began_s, cpu_s = time.monotonic(), time.process_time()
            rate = whole_stack.run(_workload(number)).total_rate
            client_shares.append((time.process_time() - cpu_s) / (time.monotonic() - began_s))
            return rate

        rounds = interleave(
            {STACK: serve, ALONE: lambda number: engine.run(_workload(number)).total_rate},
            NUM_ROUNDS,
            title="serve_ratio",
        )
        engine.close()
    rounds.describe("tokens/s")
    print(f"  the client alone takes {statistics.median(client_shares):.0%} of a core meanwhile")
    return {"serve_ratio": rounds.ratio(STACK, ALONE)}


def _workload(number: int) -> Workload:
    return random_workload(
        NUM_STREAMS, prompt_tokens=PROMPT_TOKENS, num_tokens=NEW_TOKENS, seed=f"serve {number}"
    )
