"""Cases for both kernels, on any device: poisoned pools, an fp64 oracle, an error in units of rounding.

Everything that must not be read is NaN: rows past the true rank, pages of no slot, inputs of
tokens without an adapter, the buffer between the launches, what lies beside `x`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from kernels.lora.pool import PAGE_ROWS, LoraModule, SlotRows, SlotTable
from kernels.lora.segments import build_segments
from kernels.lora.side import Affine, SlotSide
from kernels.lora.triton.configs import TILE_HEIGHTS, BlockTable, rank_bound
from kernels.lora.triton.ops import TritonLoraOps
from kernels.lora.triton.tiles import LaunchShape

NAN = float("nan")
# Half a unit in the last place. Two roundings are right: of the hidden values for the tensor
# cores, and of the result.
BOUND = 2.0
EPSILON = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@dataclass(frozen=True, slots=True)
class Case:
    """One fused projection, its adapters and a batch."""

    in_features: int
    widths: tuple[int, ...]
    ranks: tuple[tuple[int, ...] | None, ...]  # [slot][slice]; None: nothing bound
    slots: tuple[int | None, ...]  # by token
    dtype: torch.dtype
    device: str = "cpu"
    seed: int = 0
    affine: bool = False  # slots scale and shift their columns as well


@dataclass(frozen=True, slots=True)
class Problem:
    """A case's tensors."""

    module: LoraModule
    x: Tensor
    base: Tensor


def mixed_ranks(rank: int, num_slices: int) -> tuple[tuple[int, ...] | None, ...]:
    """Adapters up to `rank`: equal and unequal slices, one without anything here, one not bound."""
    half, one = max(rank // 2, 1), 1
    uneven = tuple((rank, 0, half)[i % 3] for i in range(num_slices))
    return ((rank,) * num_slices, (half,) * num_slices, uneven, (0,) * num_slices, (one,) * num_slices, None)


def mixed_slots(num_tokens: int, num_slots: int, seed: int = 0) -> tuple[int | None, ...]:
    """Scattered tokens of all slots and of none; with many tokens, also a long run of one slot."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(-1, num_slots, (num_tokens,), generator=generator).tolist()
    if num_tokens == 1:
        drawn = [0]
    if num_tokens >= 300:
        drawn[100:200] = [0] * 100
    return tuple(None if slot < 0 else slot for slot in drawn)


def build(case: Case) -> Problem:
    """Random numbers where something may be read, NaN everywhere else."""
    generator = torch.Generator().manual_seed(case.seed)
    num_slices, width = len(case.widths), sum(case.widths)
    edges = [sum(case.widths[:i]) for i in range(num_slices + 1)]
    columns = tuple(slice(begin, end) for begin, end in pairwise(edges))
    num_pages = [0 if ranks is None else -(-max(1, *ranks) // PAGE_ROWS) for ranks in case.ranks]
    # Page 0 is nobody's: the page table's unused entries name it.
    shuffled = (1 + torch.randperm(sum(num_pages), generator=generator)).tolist()
    a = torch.full(((1 + sum(num_pages)) * PAGE_ROWS, num_slices, case.in_features), NAN)
    b = torch.full((a.shape[0], width), NAN)
    rows: list[SlotRows | None] = []
    for ranks, count in zip(case.ranks, num_pages, strict=True):
        pages, shuffled = tuple(shuffled[:count]), shuffled[count:]
        # Module 0 is another module: its ranks must not be taken.
        side = made_side(case, len(rows), columns, ranks or (), generator) if case.affine else None
        rows.append(None if ranks is None else SlotRows(pages, ((3,), ranks), side))
        for i, rank in enumerate(ranks or ()):
            if rank:
                index = SlotRows(pages, ()).row_index(rank)
                a[index, i] = torch.randn(rank, case.in_features, generator=generator) / case.in_features**0.5
                b[index, columns[i]] = torch.randn(rank, case.widths[i], generator=generator) / rank**0.5
    num_tokens = len(case.slots)
    x = torch.full((num_tokens, case.in_features + 16), NAN)
    used = [token for token, slot in enumerate(case.slots) if slot is not None]
    x[used, : case.in_features] = torch.randn(len(used), case.in_features, generator=generator)
    base = torch.randn(num_tokens, width, generator=generator)
    base[:, edges[:-1]] = -0.0  # adding nothing to it would change its sign
    a, b, x, base = (tensor.to(case.device, case.dtype) for tensor in (a, b, x, base))
    module = LoraModule(1, a, b, columns, SlotTable(rows))
    return Problem(module, x[:, : case.in_features], base)


def made_side(
    case: Case, slot: int, columns: Sequence[slice], ranks: Sequence[int], generator: torch.Generator
) -> SlotSide | None:
    """By slot in turn: scale and shift, a scale, a shift, none; NaN in columns of no rank."""
    parts = []
    for wanted in (slot % 4 in (0, 1), slot % 4 in (0, 2)):
        values = torch.full((sum(case.widths),), NAN)
        for piece, rank in zip(columns, ranks, strict=True) if ranks else ():
            if rank:
                values[piece] = 1 + torch.randn(piece.stop - piece.start, generator=generator) / 4
        parts.append(values.to(case.device) if wanted else None)
    # The other module's are NaN: they must not be taken.
    other = Affine(torch.full((1,), NAN), torch.full((1,), NAN))
    return SlotSide((other, Affine(*parts))) if any(part is not None for part in parts) else None


def operations(case: Case, problem: Problem, blocks: BlockTable | None = None) -> TritonLoraOps:
    """The kernels over the case's pool, which has another module before the case's."""
    module = problem.module
    other = LoraModule(0, module.a[:, :1], module.b, (slice(0, 1),), module.slots)
    # Room for tiles of one token each: see `run`.
    room = 16 * len(case.slots)
    return TritonLoraOps([other, module], max_rank=largest_rank(case), max_tokens=room, blocks=blocks)


def largest_rank(case: Case) -> int:
    """Of all slots and slices."""
    return max(max(ranks) for ranks in case.ranks if ranks)


def run(case: Case, problem: Problem, blocks: BlockTable | None = None, captured: bool = False) -> Tensor:
    """The kernels' output; `captured` gives them the surplus programs of a captured graph."""
    ops, module = operations(case, problem, blocks), problem.module
    segments, shape = build_segments(case.slots), None
    if captured:
        num_tokens = len(case.slots)
        shape = LaunchShape(TILE_HEIGHTS[0], num_tokens, rank_bound(largest_rank(case)))
        # Stale tiles of an earlier step: reading one gives a token another slot, or its own twice.
        ops.prepare(build_segments([0] * num_tokens, max_tile_tokens=1), shape)
    ops.prepare(segments, shape)
    out = problem.base.clone()
    hidden = ops.hidden(segments, module, problem.x).fill_(NAN)
    ops.shrink(problem.x, module, segments, out=hidden)
    ops.expand(hidden, module, segments, out=out)
    return out


def oracle(case: Case, problem: Problem) -> tuple[Tensor, Tensor]:
    """The equation in fp64, and for each value the size of what was summed."""
    module, result = problem.module, problem.base.double()
    size = result.abs()
    for slot, ranks in enumerate(case.ranks):
        tokens = [token for token, used in enumerate(case.slots) if used == slot]
        bound = module.slots.rows[slot]
        if not tokens or bound is None or ranks is None:
            continue
        for i, rank in enumerate(ranks):
            index, columns = bound.row_index(rank), module.columns[i]
            hidden = problem.x[tokens].double() @ module.a[index, i].double().T
            b = module.b[index, columns].double()
            affine = bound.side.affines[module.index] if bound.side else None
            if rank and affine is not None:
                scale = torch.ones(()) if affine.scale is None else affine.scale[columns]
                shift = torch.zeros(()) if affine.shift is None else affine.shift[columns]
                result[tokens, columns] = result[tokens, columns] * scale.double() + shift.double()
                size[tokens, columns] = size[tokens, columns] * scale.double().abs() + shift.double().abs()
            result[tokens, columns] += hidden @ b
            size[tokens, columns] += hidden.abs() @ b.abs()
    return result, size


def error(case: Case, problem: Problem, out: Tensor) -> float:
    """Largest error in units of the dtype's rounding; infinite where a bit changed that must not."""
    expected, size = oracle(case, problem)
    same = torch.ones_like(out, dtype=torch.bool)
    for token, slot in enumerate(case.slots):
        ranks = (None if slot is None else case.ranks[slot]) or (0,) * len(case.widths)
        for columns, rank in zip(problem.module.columns, ranks, strict=True):
            if not rank:
                same[token, columns] = out[token, columns].view(torch.int16) == problem.base[
                    token, columns
                ].view(torch.int16)
    if not bool(same.all()) or bool(out.isnan().any()):
        return float("inf")
    return float(((out.double() - expected).abs() / (size + 1e-3)).max()) / EPSILON[case.dtype]


def worst_error(cases: Sequence[Case], captured: bool = False) -> float:
    """Largest error over the cases."""
    errors = []
    for case in cases:
        problem = build(case)
        errors.append(error(case, problem, run(case, problem, captured=captured)))
    return max(errors)
