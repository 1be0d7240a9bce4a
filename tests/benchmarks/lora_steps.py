"""What LoRA adds to a step: steps with adapters against base-only steps of the same shape.

64 streams decode in one step, each adapter all-linear with numbers of its own; plans take turns step by
step. Also a prompt of 512 tokens with one adapter. The curves are for the plots.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from data_plane.adapters.packing import PackedLora
from data_plane.adapters.peft_json import parse_peft_config
from data_plane.scheduler.plan import StepPlan
from tests.benchmarks.interleaved import Rounds, interleave
from tests.benchmarks.missed import Works, explain_missed
from tests.benchmarks.step_bench import StepBench
from tests.benchmarks.synthetic import ALL_LINEAR, RandomLora

NUM_STREAMS = 64
CONTEXT = 96  # tokens before the one that a step computes: 64 of prompt and the 32 after
RANK = 16
COUNTS = {"lora_step_k1": 1, "": 4, "lora_step_k16": 16, "lora_step_k64": 64}  # adapters in a step, by key
RANKS = {8: "", 16: "", 32: "", 64: "lora_step_r64_k16"}  # keys, by the rank of all 16 adapters
NUM_RANKED = 16
PREFILL_TOKENS = 512
NUM_STEPS, NUM_PREFILLS = 31, 15
NUM_WARM_UPS = 3
PROFILED_STEPS = 10
BASE, LORA = "base only", "adapters"


@dataclass(frozen=True, slots=True)
class Curves:
    """Medians, for the plots."""

    rates: Mapping[int, float]  # tokens/s of 64 streams, by number of adapters
    step_s: Mapping[int, float]  # seconds of a step with 16 adapters, by rank; 0: base only


def measure() -> tuple[dict[str, float], Curves]:
    """The figures and the curves."""
    bench = StepBench(
        dtype="bfloat16",
        max_loras=max(COUNTS.values()),
        max_lora_rank=max(RANKS),
        rank_pool_bytes=1 << 30,
        kv_cache_bytes=256 << 20,
    )
    figures: dict[str, float] = {}
    bench.place(_adapters(bench, RANK, max(COUNTS.values())))
    rates = _by_count(bench, figures)
    _prefill(bench, figures)
    base_s = NUM_STREAMS / rates[0]
    # On the scale of one base step: steps of different ranks are minutes apart.
    step_s = {rank: base_s * ratio for rank, ratio in _by_rank(bench, figures).items()}
    return figures, Curves(rates, {0: base_s, **step_s})


def _by_count(bench: StepBench, figures: dict[str, float]) -> dict[int, float]:
    plans = {count: bench.decodes(NUM_STREAMS, CONTEXT, count) for count in (0, *COUNTS.values())}
    names = {count: f"64 streams, rank 16, {count} adapters" for count in plans}
    rounds = _steps(bench, {names[count]: plan for count, plan in plans.items()}, NUM_STEPS)
    for key, count in COUNTS.items():
        if key:
            _judge(bench, figures, key, rounds.ratio(names[count], names[0]), (plans[0], plans[count]))
    return {count: NUM_STREAMS / rounds.median(name) for count, name in names.items()}


def _prefill(bench: StepBench, figures: dict[str, float]) -> None:
    base, lora = (bench.prefill(PREFILL_TOKENS, slot) for slot in (None, 0))
    names = f"prompt of {PREFILL_TOKENS} tokens, base", f"prompt of {PREFILL_TOKENS} tokens, 1 adapter"
    rounds = _steps(bench, dict(zip(names, (base, lora), strict=True)), NUM_PREFILLS)
    _judge(bench, figures, "prefill_lora_ratio", rounds.ratio(names[1], names[0]), (base, lora))


def _by_rank(bench: StepBench, figures: dict[str, float]) -> dict[int, float]:
    base, lora = (bench.decodes(NUM_STREAMS, CONTEXT, count) for count in (0, NUM_RANKED))
    ratios = {}
    for rank, key in RANKS.items():
        bench.place(_adapters(bench, rank, NUM_RANKED))
        name = f"64 streams, {NUM_RANKED} adapters of rank {rank}"
        ratios[rank] = _steps(bench, {BASE: base, name: lora}, NUM_STEPS).ratio(name, BASE)
        if key:
            _judge(bench, figures, key, ratios[rank], (base, lora))
    return ratios


def _adapters(bench: StepBench, rank: int, count: int) -> list[PackedLora]:
    lora = RandomLora(rank=rank, modules=ALL_LINEAR)
    config = parse_peft_config(json.dumps(lora.config).encode())
    packer = bench.runtime.reader.packer
    return [packer.pack(lora.tensors(number), config) for number in range(count)]


def _steps(bench: StepBench, plans: Mapping[str, StepPlan], num_rounds: int) -> Rounds:
    rounds = interleave(
        {name: lambda number, plan=plan: bench.seconds(plan) for name, plan in plans.items()},
        num_rounds,
        num_warm_ups=NUM_WARM_UPS,
    )
    rounds.describe("ms", 1000)
    return rounds


def _judge(
    bench: StepBench,
    figures: dict[str, float],
    key: str,
    ratio: float,
    plans: tuple[StepPlan, StepPlan],
) -> None:
    """Keep a figure; explain it by both of its steps where it misses, while its adapters are in place."""
    figures[key] = ratio
    works: Works = {
        name: (lambda plan=plan: bench.seconds(plan), PROFILED_STEPS)
        for name, plan in zip((BASE, LORA), plans, strict=True)
    }
    explain_missed({key: ratio}, {key: works})
