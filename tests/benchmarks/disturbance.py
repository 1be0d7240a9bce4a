"""What a load or a reload costs the streams beside it: p99 between tokens, disturbed against quiet.

Quiet and disturbed rounds take turns, and a ratio is the median of its rounds' ratios: the machine's
own unrest hits both of a pair. A round is a crowd that decodes; only the time when the whole crowd
decodes counts, so neither its prompts nor its thinning out is taken for a disturbance. A round has a
length in steps, over 200 of them: with fewer than 100, p99 would be its slowest step, the one that
computes the newcomer's prompt, whatever came of the load.
"""

import random
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from data_plane.adapters.revision import AdapterSource, ReloadPolicy
from data_plane.engine.events import CommandDone, Load, Reload
from tests.benchmarks.live import TIMEOUT_S, LiveEngine, LiveStream
from tests.benchmarks.slow_source import SlowReader
from tests.benchmarks.synthetic import ALL_LINEAR, AdapterFactory
from tests.benchmarks.workload import ADAPTERS, demo_adapter
from tests.oracle import ADAPTERS_DIR

NUM_ROUNDS = 5
NUM_CROWD = 15
ROUND_TOKENS = 224  # of a stream: 200 steps and some in which the crowd assembles
PROMPT_TOKENS = 32
SOURCE_S = 2.0
COLD_RANK = 64
COLD_TOKENS = 16
RELOAD_EVERY_S = 0.2
PREFIX_TOKENS = 512
NUM_PREFIXES = 8
ENGINE = {
    "max_loras": 6,
    "max_lora_rank": COLD_RANK,
    "max_cpu_loras": 16,
    "max_num_seqs": 32,
    "kv_cache_bytes": 512 << 20,
}


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds between tokens of the crowd, over all its streams."""

    gaps_s: tuple[float, ...]

    @property
    def p99_s(self) -> float:
        """The 99th percentile."""
        return statistics.quantiles(self.gaps_s, n=100)[98]


@dataclass(slots=True)
class Gaps:
    """Every round by its kind, for the figures and the plots."""

    rounds: dict[str, list[Round]] = field(default_factory=dict)

    def add(self, kind: str, measured: Round) -> None:
        """One more round of a kind."""
        steps = len(measured.gaps_s) // NUM_CROWD
        print(f"  {kind}: p99 {1000 * measured.p99_s:.1f} ms of {steps} steps", file=sys.stderr, flush=True)
        self.rounds.setdefault(kind, []).append(measured)

    def ratio(self, kind: str, quiet: str) -> float:
        """Median over the rounds of p99 / the quiet p99 of the same round."""
        pairs = zip(self.rounds[kind], self.rounds[quiet], strict=True)
        return statistics.median(disturbed.p99_s / calm.p99_s for disturbed, calm in pairs)

    def describe(self) -> None:
        """Print the distribution of each kind."""
        for kind, rounds in self.rounds.items():
            gaps = [1000 * gap for measured in rounds for gap in measured.gaps_s]
            cuts = statistics.quantiles(gaps, n=100)
            print(
                f"  {kind:<24} between tokens, ms: p50 {cuts[49]:6.1f}  p90 {cuts[89]:6.1f}"
                f"  p99 {cuts[98]:6.1f}  max {max(gaps):6.1f}"
            )


class Crowd:
    """Streams that decode together, on the demo's adapters and the base model in turn."""

    def __init__(
        self, engine: LiveEngine, rng: random.Random, adapters: Sequence[AdapterSource | None]
    ) -> None:
        self._engine = engine
        self._rng = rng
        self.adapters = list(adapters)
        self.num_failed = 0  # streams that did not get their tokens

    def prompt(self, num_tokens: int = PROMPT_TOKENS) -> tuple[int, ...]:
        """Random tokens, so that no prefix is known."""
        return tuple(self._rng.randrange(self._engine.vocab_size) for _ in range(num_tokens))

    def round(self, disturb: Callable[[threading.Event], object] = lambda over: None) -> Round:
        """Let the crowd decode to its end, disturbed once all of it does; `over`: the first has ended."""
        over = threading.Event()
        streams = [
            self._engine.send(self.prompt(), adapter, ROUND_TOKENS, on_end=lambda stream: over.set())
            for adapter in self.adapters
        ]
        for stream in streams:
            if not stream.started.wait(TIMEOUT_S):
                raise TimeoutError("a stream of the crowd has not begun")
        disturb(over)
        for stream in streams:
            stream.wait()
        whole = [stream for stream in streams if stream.failure is None]
        self.num_failed += len(streams) - len(whole)
        return Round(_gaps(whole))


def _gaps(streams: Sequence[LiveStream]) -> tuple[float, ...]:
    begin_s = max(stream.token_s[0] for stream in streams)
    end_s = min(stream.token_s[-1] for stream in streams)
    return tuple(
        after - before
        for stream in streams
        for before, after in zip(stream.token_s, stream.token_s[1:], strict=False)
        if begin_s <= before and after <= end_s
    )


def measure() -> tuple[dict[str, float], Gaps]:
    """The figures of loads, reloads and prefixes, and the gaps behind them."""
    with tempfile.TemporaryDirectory() as directory:
        factory = AdapterFactory(Path(directory), rank=COLD_RANK, modules=ALL_LINEAR)
        cold = [factory.make(number) for number in range(NUM_ROUNDS + 1)]
        slow = {adapter.revision.digest: SOURCE_S for adapter in cold}
        roots = (ADAPTERS_DIR, Path(directory))
        with LiveEngine(lambda reader: SlowReader(reader, slow), adapter_roots=roots, **ENGINE) as engine:
            rng = random.Random(0)
            adapters = [demo_adapter(*name) for name in ADAPTERS]
            crowd = Crowd(engine, rng, [(*adapters, None)[i % 4] for i in range(NUM_CROWD)])
            crowd.round()  # warms the engine and brings the crowd's adapters in
            gaps = Gaps()
            figures = _cold_loads(engine, crowd, cold, gaps)
            figures |= _reloads(engine, crowd, gaps)
            figures |= _prefixes(engine, crowd, adapters[0])
    gaps.describe()
    return figures, gaps


def _cold_loads(
    engine: LiveEngine, crowd: Crowd, cold: Sequence[AdapterSource], gaps: Gaps
) -> dict[str, float]:
    warm_adapter, *cold = cold
    engine.command(Load(warm_adapter, into_slot=True)).result(TIMEOUT_S)
    sent: dict[str, list[LiveStream]] = {"cold": [], "warm": []}

    def arrive(kind: str, adapter: AdapterSource) -> None:
        sent[kind].append(engine.send(crowd.prompt(), adapter, COLD_TOKENS))

    for adapter in cold:
        gaps.add("quiet", crowd.round())
        gaps.add("cold rank-64 load", crowd.round(lambda over, adapter=adapter: arrive("cold", adapter)))
        gaps.add("warm rank-64 request", crowd.round(lambda over: arrive("warm", warm_adapter)))
    first = {kind: statistics.median(s.result().ttft_s for s in streams) for kind, streams in sent.items()}
    print(f"  first token of a cold adapter {first['cold']:.3f} s, warm {first['warm']:.3f} s")
    return {
        "cold_load_itl_p99_ratio": gaps.ratio("cold rank-64 load", "quiet"),
        "warm_request_itl_p99_ratio": gaps.ratio("warm rank-64 request", "quiet"),
        "cold_ttft_ratio": first["cold"] / (SOURCE_S + first["warm"]),
    }


def _reloads(engine: LiveEngine, crowd: Crowd, gaps: Gaps) -> dict[str, float]:
    """A third of the crowd is on the adapter that is replaced, by weights of another rank and shape."""
    tenant, name = "acme", "pirate"
    revisions = [demo_adapter(tenant, name, directory=directory) for directory in (name, f"{name}-v2")]
    others = [demo_adapter(*other) for other in ADAPTERS if other != (tenant, name)]
    outcomes: list[Future[CommandDone]] = []
    failed_before = crowd.num_failed

    def keep_reloading(over: threading.Event) -> None:
        while not over.wait(RELOAD_EVERY_S):
            revisions.reverse()
            outcomes.append(engine.command(Reload(revisions[0], ReloadPolicy.IMMEDIATE)))

    for _ in range(NUM_ROUNDS):
        crowd.adapters = [(revisions[0], *others)[i % 3] for i in range(NUM_CROWD)]
        gaps.add("quiet, before reloads", crowd.round())
        crowd.adapters = [(revisions[0], *others)[i % 3] for i in range(NUM_CROWD)]
        gaps.add("reload every 200 ms", crowd.round(keep_reloading))
    took = [outcome.result(TIMEOUT_S).elapsed_s for outcome in outcomes]
    print(f"  {len(took)} reloads, each {statistics.median(took):.3f} s (median), {max(took):.3f} s (worst)")
    return {
        "reload_itl_p99_ratio": gaps.ratio("reload every 200 ms", "quiet, before reloads"),
        "reload_failed_requests": crowd.num_failed - failed_before,
    }


def _prefixes(engine: LiveEngine, crowd: Crowd, adapter: AdapterSource) -> dict[str, float]:
    engine.send(crowd.prompt(), adapter, 1).result()
    ratios = []
    for _ in range(NUM_PREFIXES):
        prompt = crowd.prompt(PREFIX_TOKENS)
        unknown = engine.send(prompt, adapter, 1).result()
        ratios.append(engine.send(prompt, adapter, 1).result().ttft_s / unknown.ttft_s)
    return {"prefix_hit_ttft_ratio": statistics.median(ratios)}
