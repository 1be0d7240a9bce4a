"""Tokens a second with 1 to 2,000 adapters behind the same engine, in the same run.

A closed loop of streams, each drawing its adapter by Zipf (exponent 1) among the first N. Sizes are
those a user would choose for this model on a laptop: 32 slots, a CPU cache of 1 GiB (about 570 of
the 2,000 adapters of rank 8 on the attention projections, 1.8 MB each), twice as many sequences as
slots. Popular adapters are prefetched into the cache, as placement does; what does not fit is read
from its directory when a request asks for it.
"""

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from threading import Event

from data_plane.adapters.revision import AdapterSource
from data_plane.engine.events import Load
from tests.benchmarks.live import TIMEOUT_S, LiveEngine, LiveStream
from tests.benchmarks.starvation import zipf
from tests.benchmarks.synthetic import ATTENTION, AdapterFactory

FEW, MANY = 5, 2000
OTHERS = (1, 20, 100, 500)  # the curve's other points
RANK = 8
NUM_STREAMS = 32
PROMPT_TOKENS = 16
OUTPUT_TOKENS = 32
NUM_ROUNDS = 4
RAMP_S, WINDOW_S = 1.5, 6.0
PREFETCHED = 512
ENGINE = {
    "max_loras": 32,
    "max_lora_rank": RANK,
    "max_cpu_loras": 1024,
    "cpu_cache_bytes": 1 << 30,
    "max_num_seqs": 64,
    "kv_cache_bytes": 256 << 20,
}


class ClosedLoop:
    """Streams that each begin anew when they end, until told to stop."""

    def __init__(self, engine: LiveEngine, adapters: Sequence[AdapterSource], seed: int) -> None:
        self._engine = engine
        self._adapters = adapters
        self._cumulative = list(accumulate(zipf(len(adapters))))
        self._rng = random.Random(seed)
        self._sent: list[LiveStream] = []
        self._stopping = False

    def rate(self) -> float:
        """Generated tokens a second in the window after the ramp."""
        for _ in range(NUM_STREAMS):
            self._send()
        Event().wait(RAMP_S)
        begin_s = time.monotonic()
        Event().wait(WINDOW_S)
        end_s = time.monotonic()
        self._stopping = True
        for stream in tuple(self._sent):
            stream.result()
        tokens = sum(begin_s < at_s <= end_s for stream in self._sent for at_s in stream.token_s)
        return tokens / (end_s - begin_s)

    def _send(self) -> None:
        (adapter,) = self._rng.choices(self._adapters, cum_weights=self._cumulative)
        prompt = tuple(self._rng.randrange(self._engine.vocab_size) for _ in range(PROMPT_TOKENS))
        self._sent.append(self._engine.send(prompt, adapter, OUTPUT_TOKENS, on_end=self._again))

    def _again(self, stream: LiveStream) -> None:
        if not self._stopping:
            self._send()


def measure() -> tuple[dict[str, float], dict[int, float]]:
    """The ratio, and tokens a second by number of adapters."""
    with tempfile.TemporaryDirectory(prefix="loraplane-bench-") as directory:
        factory = AdapterFactory(Path(directory), rank=RANK, modules=ATTENTION)
        print(f"  making {MANY} adapters of {factory.num_bytes / 1e6:.1f} MB", file=sys.stderr, flush=True)
        adapters = [factory.make(number) for number in range(MANY)]
        with LiveEngine(adapter_roots=(Path(directory),), **ENGINE) as engine:
            for command in [engine.command(Load(adapter)) for adapter in adapters[:PREFETCHED]]:
                command.result(TIMEOUT_S)
            rates = _rates(engine, adapters)
            reads = engine.status().cold_loads
    curve = {count: statistics.median(values) for count, values in sorted(rates.items())}
    for count, rate in curve.items():
        print(f"  {count:5d} adapters {rate:8.1f} tokens/s")
    print(f"  {reads - PREFETCHED} reads of a source under traffic")
    pairs = zip(rates[MANY], rates[FEW], strict=True)
    return {"adapters_2000_vs_5": statistics.median(many / few for many, few in pairs)}, curve


def _rates(engine: LiveEngine, adapters: Sequence[AdapterSource]) -> dict[int, list[float]]:
    rates: dict[int, list[float]] = {}
    ClosedLoop(engine, adapters[:FEW], seed=-1).rate()  # warms the engine
    for number in range(NUM_ROUNDS):
        # The curve's other points are measured once, between the pairs.
        for count in (FEW, MANY, *OTHERS[number : number + 1]):
            rate = ClosedLoop(engine, adapters[:count], seed=number).rate()
            rates.setdefault(count, []).append(rate)
            print(f"  {count} adapters: {rate:.1f} tokens/s", file=sys.stderr, flush=True)
    return rates
