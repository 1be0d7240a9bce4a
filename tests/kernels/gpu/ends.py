"""The ends' kernels on a device against fp64: what `run` asks of the embedding and the head."""

import time
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from kernels.lora.segments import build_segments
from tests.kernels.triton import end_cases, step_time
from tests.kernels.triton.cases import mixed_slots
from tests.kernels.triton.end_cases import BARE, OWN, EndCase

RANKS = (1, 8, 16, 64, 320, 512)
SHAPES = ((1000, 576), (32000, 4096))  # vocabulary, width
TOKENS, DTYPES = (64, 7, 1, 300), (torch.bfloat16, torch.float16)
CAPTURED = 64  # tokens whose launches have a captured graph's surplus programs


def end_correctness(device: str, deadline: float) -> list[dict[str, Any]]:
    """Errors in units of rounding; over BOUND is wrong. The demanded cases come first, whatever the time."""
    found: list[dict[str, Any]] = []
    for num_tokens, rank, (vocabulary, width), dtype in product(TOKENS, RANKS, SHAPES, DTYPES):
        if len(found) >= num_demanded_ends() and time.monotonic() > deadline:
            break
        slots = mixed_slots(num_tokens, 6, seed=rank + num_tokens)
        kinds, affine = end_cases.mixed_kinds(rank), rank % 16 == 0
        case = EndCase(vocabulary, width, kinds, slots, dtype, device, affine=affine)
        worst = max(end_cases.worst_errors([case], captured=num_tokens == CAPTURED))
        found.append(
            {
                "rank": rank,
                "vocabulary": vocabulary,
                "num_tokens": num_tokens,
                "dtype": str(dtype),
                "error": worst,
            }
        )
    return found


def num_demanded_ends() -> int:
    """Cases without which nothing is proved: every rank, shape and dtype at one number of tokens."""
    return len(RANKS) * len(SHAPES) * len(DTYPES)


def replayed_ends(device: str) -> float:
    """One captured graph of both ends, replayed for adapters that are bound anew in its slots."""
    kinds = (16, OWN, 8, BARE)
    case = EndCase(1000, 576, kinds, mixed_slots(32, len(kinds)), torch.bfloat16, device, affine=True)
    problem = end_cases.build(case)
    # NaN where only the first binding reads nothing.
    problem = replace(
        problem, ids=torch.full_like(problem.ids, case.vocabulary - 1), x=problem.x.nan_to_num(0.5)
    )
    for rows in problem.slots.rows:
        if rows and rows.side and rows.side.embedding:
            for tensor in rows.side.embedding.tensors():
                if tensor is not None:
                    tensor.nan_to_num_(0.5)
    ops, segments = end_cases.operations(case, problem), build_segments(case.slots)
    rows_of = torch.arange(len(case.slots), device=device)
    found = (problem.embeddings.clone(), problem.logits.clone())

    def work() -> None:
        ops.change_embeddings(problem.ids, segments, multiplier=problem.multiplier, out=found[0])
        ops.change_logits(problem.x, segments, rows_of, out=found[1])

    end_cases.begin(ops, case)
    graph = step_time.capture(work)
    worst, bound = 0.0, list(problem.slots.rows)
    for turn in range(len(bound)):
        for slot, row in enumerate(bound[turn:] + bound[:turn]):
            problem.slots.bind(slot, row)
        end_cases.refresh(ops, case)
        found[0].copy_(problem.embeddings)
        found[1].copy_(problem.logits)
        graph.replay()
        worst = max(worst, *end_cases.errors(case, problem, found))
    return worst
