"""The goal of every figure, in one table; how figures are printed, judged and kept.

Figures of every benchmark share build/bench.json: one that was not measured this time stays.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

BUILD_DIR = Path(__file__).parents[2] / "build"
OUTPUT = BUILD_DIR / "bench.json"


class Bound(Enum):
    """On which side of the goal a figure must be."""

    AT_LEAST = "≥"
    AT_MOST = "≤"


# A busy machine moves a ratio of timings by a third and more; what misses its goal by this much is no noise.
NOISE = 0.5


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure says and must reach."""

    meaning: str
    bound: Bound | None = None  # None: only printed
    value: float = 0.0

    def reached(self, figure: float) -> bool:
        """Whether the figure is on the right side; NaN never is."""
        match self.bound:
            case Bound.AT_LEAST:
                return figure >= self.value
            case Bound.AT_MOST:
                return figure <= self.value
            case None:
                return True

    def broken(self, figure: float) -> bool:
        """Whether the goal is missed by more than a noisy machine explains."""
        match self.bound:
            case Bound.AT_LEAST:
                return not figure >= NOISE * self.value
            case Bound.AT_MOST:
                return not figure <= self.value / NOISE
            case None:
                return False


def at_least(value: float, meaning: str) -> Goal:
    """A figure that must not be smaller."""
    return Goal(meaning, Bound.AT_LEAST, value)


def at_most(value: float, meaning: str) -> Goal:
    """A figure that must not be larger."""
    return Goal(meaning, Bound.AT_MOST, value)


GOALS: Mapping[str, Goal] = {
    # make bench-smoke
    "stack_vs_engine": at_least(0.9, "tokens/s: whole stack / engine in process"),
    "stack_lora_vs_base": Goal("tokens/s: whole stack with three adapters + base / base only"),
    "stack_vs_hf": at_least(1.0, "tokens/s: whole stack with adapters / transformers without"),
    "stack_vs_peft": at_least(3.0, "tokens/s: whole stack / PEFT, three adapters + base"),
    # make bench: the engine
    "pool_efficiency": at_least(0.95, "bytes needed / allocated, ranks 8, 16, 32, 64 in one rank pool"),
    "pool_padded_efficiency": Goal("the same, every adapter padded to rank 64"),
    "pool_residents_vs_padded": Goal("residents per GiB: pages / slots padded to rank 64"),
    "starvation_wait_ratio": at_most(2.0, "worst wait / that of an ideal round robin, 64 adapters, 4 slots"),
    "flood_victim_share": at_least(0.9, "service of a flooded tenant / its fair share"),
    "cold_load_itl_p99_ratio": at_most(1.15, "p99 between tokens of 15 streams: a cold load / quiet"),
    "warm_request_itl_p99_ratio": Goal("the same when the rank-64 adapter is in its slot already"),
    "cold_ttft_ratio": at_most(1.2, "first token of a cold adapter / (source + warm first token)"),
    "reload_itl_p99_ratio": at_most(1.25, "p99 between tokens: a reload every 200 ms / quiet"),
    "reload_failed_requests": at_most(0, "requests that failed during those reloads"),
    "prefix_hit_ttft_ratio": at_most(0.25, "first token of a 512-token prompt: cached / not"),
    "hf_total_b16": at_least(2.5, "prompt + new tokens/s, 16 streams, base only: engine / transformers"),
    "hf_total_b64": at_least(2.2, "the same with 64 streams"),
    "hf_decode_b1": at_least(2.5, "decode tokens/s of one stream: engine / transformers"),
    "hf_prefill": at_least(2.3, "prompt tokens/s, 64 prompts of 64 tokens: engine / transformers"),
    "peft_b16_k16": at_least(8.0, "decode tokens/s, 16 streams on 16 adapters: engine / PEFT"),
    "peft_b64_k64": at_least(14.0, "decode tokens/s, 64 streams on 64 adapters: engine / PEFT"),
    "lora_step_k1": at_most(1.06, "step of 64 streams, rank 16, all linears: 1 adapter / base only"),
    "lora_step_k16": at_most(1.12, "the same with 16 adapters"),
    "lora_step_k64": at_most(1.30, "the same with 64 adapters"),
    "lora_step_r64_k16": at_most(1.40, "the same with 16 adapters of rank 64"),
    "prefill_lora_ratio": at_most(1.10, "step of a 512-token prompt: 1 adapter / base only"),
    "serve_ratio": at_least(0.95, "total tokens/s, 64 streams: whole stack / engine in process"),
    "load_vs_read": at_most(1.5, "s, Llama-3-8B shapes, rank 16: packing an adapter's files / reading them"),
    "load_vs_read_first": Goal("the same for the first adapter of a recipe, whose plan is made anew"),
    "load_vs_read_new_memory": Goal("load_vs_read, both into memory that is new to the process"),
    "bandwidth_share_b1": at_least(0.55, "one stream: bytes a step reads × steps/s / read bandwidth"),
    "read_bandwidth_gb_s": Goal("GB/s, sums of 1 GiB by all threads"),
    "adapters_2000_vs_5": at_least(0.9, "tokens/s: 2,000 adapters under Zipf traffic / 5"),
    # make bench: the control plane
    "admission_ratio": at_least(0.4, "calls/s: authenticate, resolve, reserve, route / an empty RPC"),
    "admission_ratio_no_sync": Goal("the same with a Valkey that does not sync its writes"),
    "relay_ratio": at_least(0.4, "messages/s: through the relay / a bare stream"),
    "registry_flat_ratio": at_least(0.9, "calls/s of registry RPCs, pages of 100: 100,000 adapters / 100"),
    "affinity_load_ratio": at_most(0.3, "loads on a Zipf trace: residency-aware / least-loaded routing"),
    "affinity_load_ratio_w4": Goal("the same with 4 workers, whose caches hold a quarter of the adapters"),
    "affinity_bound_w4": Goal("there, one shared LRU of all workers' size / least-loaded: nothing is below"),
    "converge_s": at_most(2.0, "s from the end of a killed leader's lease to its successor's command"),
    "converge_follower_s": at_most(
        2.0, "s from a follower's death to a command for its worker, which redials"
    ),
    "converge_worker_s": at_most(2.0, "s from a worker's kill -9 until another is told to hold its adapter"),
    "converge_store_s": at_most(2.0, "s from a killed store's return to the next command"),
    "plan_us": Goal("µs to plan one adapter more, 200 workers, 10,000 adapters"),
    "plan_pairs": Goal("pairs (worker, adapter) looked at for it"),
    "plan_bytes": Goal("bytes of planning an adapter beside the registry's own values"),
}


def report(figures: Mapping[str, float]) -> int:
    """Print the table, keep the figures; the exit code: 1 when a goal is missed by more than noise."""
    print("\nfigure")
    for key, figure in figures.items():
        goal = GOALS[key]
        wanted = f"{goal.bound.value} {goal.value:g}" if goal.bound else ""
        verdict = "" if goal.reached(figure) else "MISSED"
        print(f"  {key:<26} {figure:7.3f}  {wanted:<7} {verdict:<7} {goal.meaning}")
    keep(figures, OUTPUT)
    missed = [f"{key} {figures[key]:.3f}" for key in figures if not GOALS[key].reached(figures[key])]
    if missed:
        print(f"missed: {', '.join(missed)}")
    return 1 if any(GOALS[key].broken(figure) for key, figure in figures.items()) else 0


def keep(figures: Mapping[str, float], path: Path) -> None:
    """Merge figures into the file."""
    path.parent.mkdir(exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(known | dict(figures), indent=2, sort_keys=True) + "\n")
