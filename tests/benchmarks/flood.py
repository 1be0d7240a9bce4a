"""What a flooding tenant costs another: service of the victim / its fair share, both always waiting.

Service is what the virtual token counter charges: prompt tokens, and output tokens at their price.
The victim keeps enough requests waiting to use its half; the flood keeps ten times as many. Steps
are of a tensor side without tensors: the share is the policy's alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

from data_plane.adapters.revision import AdapterSource
from data_plane.engine.events import Delta, Failed, Finished, Started
from data_plane.scheduler.fairness import OUTPUT_COST, PROMPT_COST
from data_plane.scheduler.sampling import SamplingParams
from tests.data_plane.fakes import Bench, source

NUM_STEPS = 2500
WARMUP_STEPS = 250
NUM_VICTIM = 32
NUM_FLOOD = 320
MAX_SEQUENCES = 16


@dataclass(frozen=True, slots=True)
class Shape:
    """What a tenant asks for."""

    prompt_tokens: int
    output_tokens: int
    adapter: Callable[[int], AdapterSource | None]  # of its n-th request


def _base(number: int) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Flood:
    """A case: who the victim is and what floods it."""

    name: str
    victim: Shape
    flood: Shape
    num_blocks: int = 1024


FLOODS = (
    Flood("base model, equal requests", Shape(8, 16, _base), Shape(8, 16, _base)),
    Flood("long prompts", Shape(8, 16, _base), Shape(48, 4, _base)),
    Flood("long outputs", Shape(8, 8, _base), Shape(4, 56, _base)),
    Flood("too few blocks", Shape(8, 16, _base), Shape(16, 40, _base), num_blocks=96),
    Flood(
        "16 adapters on 4 slots, the victim on one",
        Shape(8, 16, lambda number: source("mine", tenant="victim")),
        Shape(8, 16, lambda number: source(f"its{number % 16}", tenant="flood")),
    ),
)


def measure() -> dict[str, float]:
    """The smallest share over all floods."""
    shares = {flood.name: _share(flood) for flood in FLOODS}
    for name, share in shares.items():
        print(f"  victim's service / fair share: {share:5.2f}  {name}")
    return {"flood_victim_share": min(shares.values())}


def _share(flood: Flood) -> float:
    bench = Bench(
        num_blocks=flood.num_blocks,
        max_loras=4,
        max_cpu_loras=32,
        max_num_seqs=MAX_SEQUENCES,
        max_num_batched_tokens=64,
    )
    shapes = {"flood": (flood.flood, NUM_FLOOD), "victim": (flood.victim, NUM_VICTIM)}
    live = dict.fromkeys(shapes, 0)
    service = dict.fromkeys(shapes, 0.0)
    count = 0
    for step in range(NUM_STEPS):
        for tenant, (shape, wanted) in shapes.items():
            while live[tenant] < wanted:
                _add(bench, tenant, shape, count)
                live[tenant] += 1
                count += 1
        for event in bench.step():
            tenant = event.request_id.split()[0]
            live[tenant] -= isinstance(event, Finished | Failed)
            if step >= WARMUP_STEPS:
                service[tenant] += _cost(event, shapes[tenant][0])
        bench.runner.plans.clear()  # kept for tests; thousands of steps would fill the memory
    return 2 * service["victim"] / sum(service.values())


def _add(bench: Bench, tenant: str, shape: Shape, number: int) -> None:
    # No two prompts begin alike: a prefix that is cached costs nothing.
    prompt = tuple((number >> shift) % 256 for shift in (0, 8)) + (7,) * (shape.prompt_tokens - 2)
    sampling = SamplingParams(temperature=0, max_tokens=shape.output_tokens, ignore_eos=True)
    bench.add(f"{tenant} {number}", prompt, shape.adapter(number), sampling, tenant=tenant)


def _cost(event: object, shape: Shape) -> float:
    match event:
        case Started():
            return PROMPT_COST * shape.prompt_tokens
        case Delta(token_ids=tokens):
            return OUTPUT_COST * len(tokens)
    return 0.0
