"""`make gpu`: everything about the Triton kernels that only a GPU can tell, unattended, in under 8 minutes.

    python -m tests.kernels.gpu [--out build/gpu]

1. correctness on the device: LoRA of projections and of both ends against fp64, the KV write against
   indexing, paged attention against plain PyTorch; each also under replayed CUDA graphs
2. a tiny model with adapters through the engine, with graphs and without: the CPU's greedy tokens
3. step time with and without LoRA, and its ratio to the limit of the device
4. the tuner, until its time is over; its table is written beside, never over the committed one

Writes result.json after each part, plot.svg and table.json. Imports torch, triton and this repository;
the second part is left out, and says so, where a package of the engine is missing.
Ends with 0, with 1 where a number is wrong, with 2 where there is no GPU.
"""

import argparse
import json
import time
import traceback
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from kernels.lora.segments import build_segments
from kernels.lora.triton.configs import load_table, rank_bound
from kernels.lora.triton.tiles import LaunchShape
from tests.kernels.gpu.end_to_end import end_to_end, is_wrong
from tests.kernels.gpu.ends import end_correctness, num_demanded_ends, replayed_ends
from tests.kernels.gpu.paged import paged
from tests.kernels.triton import step_time, tuner
from tests.kernels.triton.cases import (
    BOUND,
    Case,
    build,
    error,
    mixed_ranks,
    mixed_slots,
    operations,
    worst_error,
)
from tests.kernels.triton.plot import line_plot
from tests.kernels.triton.roofline import H100, LLAMA_8B, LLAMA_70B_TP8, Gpu, Traffic, ratio

# Since the start; what is left at a bound is left out, but what is demanded.
ENDS_S, CORRECTNESS_S, STEPS_S, TOTAL_S = 60, 150, 260, 440
RANKS = (1, 8, 16, 64, 320, 512)
WIDTHS = {576: (576, 192, 192), 4096: (4096, 1024, 1024), 14336: (4096,)}
TOKENS, DTYPES = (64, 7, 1, 300), (torch.bfloat16, torch.float16)
NUM_TOKENS, RANKS_OF_STEPS, ADAPTERS = 64, (16, 64), (1, 4, 16, 64)
MEMORY_SHARE = 0.7  # of what is free


def correctness(device: str, deadline: float) -> list[dict[str, Any]]:
    """Errors in units of rounding; over BOUND is wrong. The demanded cases come first, whatever the time."""
    found: list[dict[str, Any]] = []
    for num_tokens, rank, inputs, dtype in product(TOKENS, RANKS, WIDTHS, DTYPES):
        if len(found) >= num_demanded() and time.monotonic() > deadline:
            break
        widths = WIDTHS[inputs]
        ranks = mixed_ranks(rank, len(widths))
        slots = mixed_slots(num_tokens, len(ranks), seed=rank + num_tokens)
        worst = worst_error([Case(inputs, widths, ranks, slots, dtype, device)])
        found.append(
            {
                "rank": rank,
                "in_features": inputs,
                "num_tokens": num_tokens,
                "dtype": str(dtype),
                "error": worst,
            }
        )
    return found


def num_demanded() -> int:
    """Cases without which nothing is proved: every rank, width and dtype at one number of tokens."""
    return len(RANKS) * len(WIDTHS) * len(DTYPES)


def replayed_graph(device: str) -> float:
    """One captured graph, replayed for other adapters than it was captured with."""
    ranks, widths = mixed_ranks(16, 3), WIDTHS[576]
    first = Case(576, widths, ranks, mixed_slots(32, len(ranks)), torch.bfloat16, device)
    problem = build(first)
    ops, module = operations(first, problem), problem.module
    shape = LaunchShape.for_capture(32, len(ranks), rank_bound(16))
    # NaN inputs of tokens without an adapter would be another mix's inputs.
    x, out = problem.x.nan_to_num(0.5), problem.base.clone()
    segments = build_segments(first.slots)
    ops.prepare(segments, shape)
    graph = step_time.capture(lambda: ops.add(x, module, segments, out=out))
    worst = 0.0
    for seed in range(4):
        case = replace(first, slots=mixed_slots(32, len(ranks), seed=seed))
        segments = build_segments(case.slots)
        ops.prepare(segments, shape)
        out.copy_(problem.base)
        graph.replay()
        worst = max(worst, error(case, replace(problem, x=x), out))
    return worst


def step_times(device: Gpu, deadline: float) -> list[dict[str, Any]]:
    """Measured (base + LoRA) / base beside the limit's; layers as many as the memory holds."""
    found: list[dict[str, Any]] = []
    for model in (LLAMA_8B, LLAMA_70B_TP8):
        for rank in RANKS_OF_STEPS:
            if time.monotonic() > deadline:
                return found
            most = Traffic(NUM_TOKENS, max(ADAPTERS), rank)
            free = torch.cuda.mem_get_info()[0] * MEMORY_SHARE
            num_layers = min(16, int(free // step_time.layer_bytes(model, most)))
            if not num_layers:
                continue
            step = step_time.Step(model, num_layers, NUM_TOKENS, max(ADAPTERS), rank, "cuda")
            base_s = step.seconds(None)
            for num_adapters in ADAPTERS:
                measured = step.seconds(num_adapters) / base_s
                limit = ratio(model, Traffic(NUM_TOKENS, num_adapters, rank), device)
                found.append(
                    {
                        "model": model.name,
                        "num_layers": num_layers,
                        "rank": rank,
                        "num_adapters": num_adapters,
                        "base_s": base_s,
                        "ratio": measured,
                        "limit": limit,
                    }
                )
            del step
            torch.cuda.empty_cache()
    return found


def attempted_end_to_end() -> dict[str, Any]:
    """What the engine gave, or how it failed: the other parts are worth having even then."""
    try:
        return end_to_end("cuda")
    except Exception as error:  # whatever a device raises is the result
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"}


def limits_of_device() -> Gpu:
    """What the device does at best, tried out: a copy and a large product."""
    source = torch.empty(2**30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    copied = step_time.replay_seconds(step_time.capture(lambda: copy(source, target)), 10)
    a, b, c = (torch.ones(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(3))
    product = step_time.replay_seconds(step_time.capture(lambda: multiply(a, b, c)), 10)
    return Gpu(torch.cuda.get_device_name(), 2 * 2**30 / copied, 2 * 8192**3 / product, H100.launch_s)


def copy(source: Tensor, target: Tensor) -> None:
    """Move every byte once out and once in."""
    target.copy_(source)


def multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out = a @ b"""
    torch.mm(a, b, out=out)


def main(arguments: list[str]) -> int:
    """Run the parts; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    out: Path = parser.parse_args(arguments).out
    if not torch.cuda.is_available():
        print("no GPU: torch.cuda.is_available() is False. `make kernels` needs none.")
        return 2
    out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }

    def finish(name: str, value: Any) -> None:
        result[name], result[f"{name}_done_s"] = value, round(time.monotonic() - begin, 1)
        (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
        print(f"{name}: done after {result[f'{name}_done_s']} s", flush=True)

    # The graph first: what serving uses.
    finish("replayed_graph_error", replayed_graph("cuda"))
    finish("replayed_ends_error", replayed_ends("cuda"))
    finish("paged", paged("cuda"))
    finish("end_correctness", end_correctness("cuda", begin + ENDS_S))
    finish("correctness", correctness("cuda", begin + CORRECTNESS_S))
    finish("end_to_end", attempted_end_to_end())
    if "skipped" in result["end_to_end"]:
        print(f"end_to_end: skipped, {result['end_to_end']['skipped']}")
    device = limits_of_device()
    finish("limits", asdict(device))
    finish("steps", step_times(device, begin + STEPS_S))
    (out / "plot.svg").write_text(plot(result["steps"]))
    table, timed = tuner.tune(load_table(), step_time.LaunchTimer("cuda"), time.monotonic, begin + TOTAL_S)
    (out / "table.json").write_text(tuner.to_json(table))
    finish("tuned", timed)
    return report(result)


def report(result: dict[str, Any]) -> int:
    """Print what the parts found; the exit status."""
    for step in result["steps"]:
        print(
            "{model}: rank {rank}, {num_adapters} adapters: {ratio:.2f} × base (limit {limit:.2f})".format(
                **step
            )
        )
    found = {
        "projections": (result["correctness"], num_demanded(), result["replayed_graph_error"]),
        "ends": (result["end_correctness"], num_demanded_ends(), result["replayed_ends_error"]),
    }
    right = [is_right(name, *each) for name, each in found.items()]
    faults = [check for check in result["paged"] if check["wrong"]]
    for check in faults:
        print("{check}: {wrong}".format(**check))
    print(f"attention and KV write: {len(result['paged'])} checks, {len(faults)} wrong")
    print(f"end to end: {json.dumps(result['end_to_end'])}")
    whole = result["paged"] and not faults and not is_wrong(result["end_to_end"])
    return int(not (all(right) and whole))


def is_right(name: str, cases: list[dict[str, Any]], demanded: int, replayed: float) -> bool:
    """Whether every demanded case was computed, and those and the replayed graph are within BOUND."""
    wrong = [case for case in cases if not case["error"] < BOUND]
    print(f"{name}: {len(cases)} cases, {len(wrong)} wrong; replayed graph: error {replayed:.2f} of {BOUND}")
    if missing := max(0, demanded - len(cases)):
        print(f"{name}: {missing} of {demanded} demanded cases were not computed")
    return not (wrong or missing) and replayed < BOUND


def plot(steps: list[dict[str, Any]]) -> str:
    """Step time against adapters, measured and at the limit, for the first model at the first rank."""
    shown = [s for s in steps if s["model"] == LLAMA_8B.name and s["rank"] == RANKS_OF_STEPS[0]]
    if not shown:
        return line_plot("no step was timed", ["-"], {"none": [1.0]})
    return line_plot(
        f"{LLAMA_8B.name}, {NUM_TOKENS} tokens, rank {RANKS_OF_STEPS[0]}: step time / base",
        [f"{s['num_adapters']} adapters" for s in shown],
        {"measured": [s["ratio"] for s in shown], "limit": [s["limit"] for s in shown]},
    )
