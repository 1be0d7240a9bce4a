"""Our engine against transformers and PEFT on the same prompts: total, decode and prefill.

Base-only work against transformers, work of many adapters against PEFT with mixed `adapter_names`. Every
round has new random prompts, so no prefix is ever known. Decode rates count the time when all streams
decode, so a peer whose step takes a second may be given fewer tokens: a longer context costs us alone.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from operator import attrgetter
from pathlib import Path

from data_plane.adapters.revision import AdapterSource
from tests.benchmarks.interleaved import Measure, Rounds, interleave
from tests.benchmarks.missed import explain_missed
from tests.benchmarks.peers import Peft, Transformers
from tests.benchmarks.run import Run
from tests.benchmarks.synthetic import ALL_LINEAR, AdapterFactory
from tests.benchmarks.systems import InProcess
from tests.benchmarks.workload import Workload, random_workload

NUM_ROUNDS = 5
PROMPT_TOKENS, NEW_TOKENS = 64, 32
ONE_STREAM_TOKENS = 64
PREFILL_STREAMS = 64
RANK = 16
OUR_TOKENS = 24  # of a stream beside PEFT: enough that all decode together for a while
PEFT_TOKENS = {16: 12, 64: 5}  # by number of streams, each on an adapter of its own
ENGINE = {"dtype": "bfloat16", "max_num_seqs": 64, "kv_cache_bytes": 256 << 20}
OURS = "ours"

RunWorkload = Callable[[Workload], Run]
Rate = Callable[[Run], float]
TOTAL: Rate = attrgetter("total_rate")
DECODE: Rate = attrgetter("decode_rate")
PROMPT: Rate = attrgetter("prompt_rate")


@dataclass(frozen=True, slots=True)
class Batch:
    """Streams of one shape; every number gives other prompts."""

    key: str  # of the figure
    num_streams: int
    num_tokens: int
    adapters: Sequence[AdapterSource] = ()

    def workload(self, number: int) -> Workload:
        """That of one round."""
        return random_workload(
            self.num_streams,
            prompt_tokens=PROMPT_TOKENS,
            num_tokens=self.num_tokens,
            seed=f"{self.key} {number}",
            adapters=self.adapters,
        )

    def measure(self, run: RunWorkload, rate: Rate) -> Measure:
        """The rate of a system that runs them."""

        def measure(number: int) -> float:
            done = run(self.workload(number))
            if done.num_cached_tokens:
                raise ValueError(f"{self.key}: {done.num_cached_tokens} prompt tokens were known already")
            return rate(done)

        return measure


def measure_transformers() -> dict[str, float]:
    """hf_total_b16, hf_total_b64, hf_decode_b1 and hf_prefill."""
    engine, peer = InProcess(**ENGINE), Transformers()
    figures: dict[str, float] = {}
    for batch, rate, run in (
        (Batch("hf_total_b16", 16, NEW_TOKENS), TOTAL, peer.run),
        (Batch("hf_total_b64", 64, NEW_TOKENS), TOTAL, peer.run),
        (Batch("hf_decode_b1", 1, ONE_STREAM_TOKENS), DECODE, peer.run),
        (Batch("hf_prefill", PREFILL_STREAMS, 1), PROMPT, peer.prefill),
    ):
        systems = {OURS: batch.measure(engine.run, rate), "transformers": batch.measure(run, rate)}
        _compare(figures, engine, batch, systems)
    engine.close()
    return figures


def measure_peft() -> dict[str, float]:
    """peft_b16_k16 and peft_b64_k64."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="loraplane-bench-") as directory:
        factory = AdapterFactory(Path(directory), rank=RANK, modules=ALL_LINEAR)
        adapters = [factory.make(number) for number in range(max(PEFT_TOKENS))]
        engine = InProcess(
            max_loras=len(adapters), max_lora_rank=RANK, adapter_roots=(Path(directory),), **ENGINE
        )
        peer = Peft(adapters, alike=True)
        for num_streams, peer_tokens in PEFT_TOKENS.items():
            key = f"peft_b{num_streams}_k{num_streams}"
            ours = Batch(key, num_streams, OUR_TOKENS, adapters[:num_streams])
            theirs = Batch(key, num_streams, peer_tokens, adapters[:num_streams])
            systems = {OURS: ours.measure(engine.run, DECODE), "PEFT": theirs.measure(peer.run, DECODE)}
            _compare(figures, engine, ours, systems)
        engine.close()
    return figures


def _compare(figures: dict[str, float], engine: InProcess, batch: Batch, systems: dict[str, Measure]) -> None:
    """Measure ours and the peer, and keep the ratio; where it misses, explain it by one more run of ours."""
    rounds = interleave(systems, NUM_ROUNDS, title=batch.key)
    Rounds({f"{batch.key}, {name}": values for name, values in rounds.values.items()}).describe("tokens/s")
    (peer,) = systems.keys() - {OURS}
    figures[batch.key] = rounds.ratio(OURS, peer)
    numbers = count(NUM_ROUNDS)
    works = {"our run": (lambda: engine.run(batch.workload(next(numbers))), 1)}
    explain_missed({batch.key: figures[batch.key]}, {batch.key: works})
