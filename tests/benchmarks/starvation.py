"""How long requests wait for a slot: 64 adapters, 4 slots, against an ideal round robin.

Clients in a closed loop: each sends its next request when the last has ended, for an adapter it
draws. The engine's policy runs on a tensor side without tensors, so a wait is counted in steps and
the machine's speed is out of it. Both systems serve the same clients.
"""

import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from data_plane.engine.assemble import EnginePolicy
from data_plane.engine.events import Failed, Finished, Started
from data_plane.scheduler.sampling import SamplingParams
from data_plane.scheduler.turns import TURN_STEPS
from tests.benchmarks.round_robin import RoundRobin
from tests.data_plane.fakes import Bench, source

NUM_ADAPTERS, NUM_SLOTS = 64, 4
NUM_CLIENTS = 96
MAX_SEQUENCES = 32
NUM_STEPS = 6000
MAX_TOKENS = (8, 32)

# One step of a system: which requests started, which ended.
Step = Callable[[], tuple[Sequence[int], Sequence[int]]]
Add = Callable[[int, int, int], None]  # request, adapter, tokens


@dataclass(frozen=True, slots=True)
class Waits:
    """Steps from arrival to start, of every request that started; those still waiting count too."""

    steps: tuple[int, ...]

    def describe(self, name: str) -> None:
        """Print the distribution."""
        cuts = statistics.quantiles(self.steps, n=100)
        print(
            f"  {name:<24} steps waited: p50 {cuts[49]:5.0f}  p90 {cuts[89]:5.0f}  p99 {cuts[98]:5.0f}"
            f"  worst {max(self.steps):5d}   ({len(self.steps)} requests)"
        )


def measure() -> tuple[dict[str, float], dict[str, Waits]]:
    """The worse of the two traffics' ratios, and every distribution."""
    waits: dict[str, Waits] = {}
    ratios = []
    for traffic, weights in (("Zipf", zipf(NUM_ADAPTERS)), ("uniform", [1.0] * NUM_ADAPTERS)):
        waits[f"{traffic}, engine"] = _engine(weights)
        waits[f"{traffic}, ideal"] = _ideal(weights)
        ratios.append(max(waits[f"{traffic}, engine"].steps) / max(waits[f"{traffic}, ideal"].steps))
    for name, distribution in waits.items():
        distribution.describe(name)
    return {"starvation_wait_ratio": max(ratios)}, waits


def zipf(count: int, exponent: float = 1.0) -> list[float]:
    """Weights of ranks 1 … count."""
    return [rank**-exponent for rank in range(1, count + 1)]


def _ideal(weights: Sequence[float]) -> Waits:
    system = RoundRobin(
        num_adapters=NUM_ADAPTERS,
        num_slots=NUM_SLOTS,
        turn_steps=TURN_STEPS,
        max_sequences=MAX_SEQUENCES,
    )
    return _closed_loop(weights, system.add, system.step)


def _engine(weights: Sequence[float]) -> Waits:
    bench = Bench(
        num_blocks=1024,
        max_loras=NUM_SLOTS,
        max_cpu_loras=NUM_ADAPTERS,
        cpu_cache_bytes=1 << 20,
        max_num_seqs=MAX_SEQUENCES,
        max_num_batched_tokens=256,
        policy=EnginePolicy(turn_steps=TURN_STEPS),
    )
    adapters = [source(f"adapter{number}") for number in range(NUM_ADAPTERS)]

    def add(request: int, adapter: int, num_tokens: int) -> None:
        sampling = SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        bench.add(str(request), (1, 2, request % 256), adapters[adapter], sampling)

    def step() -> tuple[list[int], list[int]]:
        events = bench.step()
        bench.runner.plans.clear()  # kept for tests; thousands of steps would fill the memory
        started = [int(event.request_id) for event in events if isinstance(event, Started)]
        ended = [int(event.request_id) for event in events if isinstance(event, Finished | Failed)]
        return started, ended

    return _closed_loop(weights, add, step)


def _closed_loop(weights: Sequence[float], add: Add, step: Step) -> Waits:
    rngs = [random.Random(client) for client in range(NUM_CLIENTS)]
    cumulative = list(accumulate(weights))
    arrived: dict[int, int] = {}
    waited: list[int] = []

    def send(client: int, number: int, now: int) -> None:
        request = number * NUM_CLIENTS + client
        (adapter,) = rngs[client].choices(range(NUM_ADAPTERS), cum_weights=cumulative)
        arrived[request] = now
        add(request, adapter, rngs[client].randint(*MAX_TOKENS))

    for client in range(NUM_CLIENTS):
        send(client, 0, 0)
    for now in range(NUM_STEPS):
        started, ended = step()
        waited += [now - arrived.pop(request) for request in started]
        for request in ended:
            send(request % NUM_CLIENTS, request // NUM_CLIENTS + 1, now)
    # Who never started has waited too.
    return Waits((*waited, *(NUM_STEPS - since for since in arrived.values())))
