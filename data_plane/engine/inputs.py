"""A step's plan as tensors: which token goes to which row, where its KV is, which rows give logits.

One-token chunks come first, because attention computes them together; both they and the
prefills are sorted by slot, so that the tokens of an adapter are consecutive rows and LoRA reads
slices instead of gathering. Results go back to the plan's order through `draws`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from data_plane.scheduler.plan import Chunk, Draw, StepPlan
from kernels.cpu.paging import PagedBatch, PagedChunk, paged_batch
from kernels.lora.segments import Segments, build_segments


@dataclass(frozen=True, slots=True)
class StepInputs:
    """Everything the model and the sampler need."""

    token_ids: Tensor  # [num_tokens] int64
    positions: Tensor  # [num_tokens] int64
    logit_rows: Tensor  # [num_draws] int64, in the plan's order
    batch: PagedBatch
    segments: Segments | None
    draws: tuple[tuple[int, Draw], ...]  # sequence and draw, in the plan's order
    new_blocks: Tensor  # [n] int64: blocks whose first token is in this step
    chunks: tuple[PagedChunk, ...]  # in the order of their rows


def step_inputs(plan: StepPlan, block_size: int) -> StepInputs:
    """Lay out the chunks of a plan as one row of tokens."""
    chunks = sorted(plan.chunks, key=_row_order)
    token_ids = [token for chunk in chunks for token in chunk.token_ids]
    slots = [chunk.slot for chunk in chunks for _ in chunk.token_ids]
    last_row: dict[int, int] = {}
    rows = -1
    for chunk in chunks:
        rows += len(chunk.token_ids)
        last_row[id(chunk)] = rows
    paged = [PagedChunk(chunk.start, len(chunk.token_ids), chunk.block_table) for chunk in chunks]
    new_blocks = [
        chunk.block_table[position // block_size]
        for chunk in chunks
        for position in _positions(chunk)
        if position % block_size == 0
    ]
    drawing = [chunk for chunk in plan.chunks if chunk.draw is not None]
    return StepInputs(
        token_ids=torch.tensor(token_ids),
        positions=torch.tensor([position for chunk in chunks for position in _positions(chunk)]),
        logit_rows=torch.tensor([last_row[id(chunk)] for chunk in drawing], dtype=torch.int64),
        batch=paged_batch(paged, block_size),
        segments=build_segments(slots) if any(slot is not None for slot in slots) else None,
        draws=tuple((chunk.sequence_id, chunk.draw) for chunk in drawing if chunk.draw is not None),
        new_blocks=torch.tensor(new_blocks, dtype=torch.int64),
        chunks=tuple(paged),
    )


def _row_order(chunk: Chunk) -> tuple[bool, int]:
    return len(chunk.token_ids) > 1, -1 if chunk.slot is None else chunk.slot


def _positions(chunk: Chunk) -> range:
    return range(chunk.start, chunk.start + len(chunk.token_ids))
