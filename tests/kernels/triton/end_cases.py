"""Cases for the ends' kernels, on any device: as `cases` makes them for the projections'.

Everything that must not be read is NaN: rows of a table that no token names, inputs of rows whose
slot leaves the head alone, what lies behind each matrix and beside `x`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.lora.pool import SlotRows, SlotTable
from kernels.lora.segments import build_segments
from kernels.lora.side import Affine, EndChange, LowRank, Replacement, SlotSide
from kernels.lora.triton.configs import TILE_HEIGHTS
from kernels.lora.triton.ends.configs import EndBlocks, load_end_blocks
from kernels.lora.triton.ends.ops import TritonEndOps
from kernels.lora.triton.tiles import LaunchShape, lay_out
from tests.kernels.triton.cases import EPSILON, NAN

OWN, BARE = "a matrix of its own", "an adapter that leaves the ends alone"
Kind = int | str | None  # a rank of LoRA, OWN, BARE; None: nothing is bound
GUARD = 512  # NaN behind every matrix


@dataclass(frozen=True, slots=True)
class EndCase:
    """Both ends of a model, adapters that change them, and a batch whose every token gives logits."""

    vocabulary: int
    width: int
    kinds: tuple[Kind, ...]  # by slot
    slots: tuple[int | None, ...]  # by token
    dtype: torch.dtype
    device: str = "cpu"
    seed: int = 0
    affine: bool = False  # LoRA scales and shifts, matrices of their own have a bias
    multiplier: float = 1.0


@dataclass(frozen=True, slots=True)
class EndProblem:
    """A case's tensors."""

    slots: SlotTable
    ids: Tensor
    multiplier: Tensor
    x: Tensor
    embeddings: Tensor  # the base's
    logits: Tensor


def shared_by(num_programs: int) -> EndBlocks:
    """The committed block sizes, with so few programs a tile that each computes several blocks of columns."""
    committed = load_end_blocks()
    return replace(
        committed,
        expand_rows=tuple(
            (bounds, replace(row, programs=num_programs)) for bounds, row in committed.expand_rows
        ),
        product_rows=tuple(
            (bounds, replace(row, programs=num_programs)) for bounds, row in committed.product_rows
        ),
    )


def mixed_kinds(rank: int) -> tuple[Kind, ...]:
    """LoRA of several ranks, a matrix of its own, an adapter with neither, a slot of none."""
    return rank, OWN, max(rank // 2, 1), BARE, 1, None


def build(case: EndCase) -> EndProblem:
    """Random numbers where something may be read, NaN everywhere else."""
    generator = torch.Generator().manual_seed(case.seed)
    num_tokens = len(case.slots)
    ids = torch.randint(case.vocabulary, (num_tokens,), generator=generator)
    if num_tokens:
        ids[-1] = case.vocabulary - 1
    rows: list[SlotRows | None] = []
    for slot, kind in enumerate(case.kinds):
        named = ids[[token for token, used in enumerate(case.slots) if used == slot]]
        side = _side(case, slot, kind, named, generator)
        rows.append(None if kind is None else SlotRows((slot,), ((),), side))
    table = SlotTable([None] * len(rows))
    for slot, row in enumerate(rows):
        table.bind(slot, row)
    x = torch.full((num_tokens, case.width + 16), NAN)
    used = [token for token, slot in enumerate(case.slots) if changes(case, slot)]
    x[used, : case.width] = torch.randn(len(used), case.width, generator=generator)
    embeddings = torch.randn(num_tokens, case.width, generator=generator)
    logits = torch.randn(num_tokens, case.vocabulary, generator=generator)
    for base in (embeddings, logits):
        base[:, 0] = -0.0  # adding nothing to it would change its sign
    x, embeddings, logits = (tensor.to(case.device, case.dtype) for tensor in (x, embeddings, logits))
    multiplier = torch.tensor(case.multiplier, device=case.device)
    return EndProblem(table, ids.to(case.device), multiplier, x[:, : case.width], embeddings, logits)


def changes(case: EndCase, slot: int | None) -> bool:
    """Whether the slot's adapter changes the ends."""
    return slot is not None and case.kinds[slot] not in (None, BARE)


def _side(case: EndCase, slot: int, kind: Kind, named: Tensor, generator: torch.Generator) -> SlotSide | None:
    if not changes(case, slot):
        return None

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def named_rows(width: int) -> Tensor:
        rows = torch.full((case.vocabulary, width), NAN)
        rows[named] = random(len(named), width)
        return rows

    def kept(tensor: Tensor, dtype: torch.dtype = case.dtype) -> Tensor:
        held = torch.full((tensor.numel() + GUARD,), NAN, dtype=dtype, device=case.device)
        held[: tensor.numel()] = tensor.flatten().to(case.device, dtype)
        return held[: tensor.numel()].view(tensor.shape)

    def affine(width: int) -> Affine | None:
        if not case.affine:
            return None
        # By slot in turn: both, a scale, a shift.
        scale, shift = (kept(1 + random(width) / 4, torch.float32) for _ in range(2))
        return Affine(scale if slot % 4 in (0, 2) else None, shift if slot % 4 in (0, 1) else None)

    embedding: EndChange
    head: EndChange
    if isinstance(kind, int):
        embedding = LowRank(
            kept(named_rows(kind)), kept(random(kind, case.width) / kind**0.5), affine(case.width)
        )
        head = LowRank(
            kept(random(kind, case.width) / case.width**0.5).t(),
            kept(random(kind, case.vocabulary) / kind**0.5),
            affine(case.vocabulary),
        )
    else:
        bias = kept(random(case.vocabulary)) if case.affine else None
        embedding = Replacement(kept(named_rows(case.width)))
        head = Replacement(kept(random(case.vocabulary, case.width) / case.width**0.5), bias)
    return SlotSide((), embedding, head)


def largest_rank(case: EndCase) -> int:
    """Of all slots."""
    return max((kind for kind in case.kinds if isinstance(kind, int)), default=1)


class PoisonedEndOps(TritonEndOps):
    """The kernels, with NaN between shrink and expand in what shrink does not write."""

    def _hidden(self, x: Tensor, split_k: int) -> Tensor:
        return super()._hidden(x, split_k).fill_(NAN)


def operations(case: EndCase, problem: EndProblem, blocks: EndBlocks | None = None) -> TritonEndOps:
    """The kernels over the case's slots."""
    device = torch.device(case.device)
    return PoisonedEndOps(
        problem.slots, max_rank=largest_rank(case), device=device, dtype=case.dtype, blocks=blocks
    )


def begin(ops: TritonEndOps, case: EndCase, *, captured: bool = False) -> None:
    """Begin the case's step; `captured` gives its launches surplus programs, over an earlier step's tiles."""
    segments = build_segments(case.slots)
    step = ops.tiles(segments)
    if captured:
        num_tokens = len(case.slots)
        shape = LaunchShape(TILE_HEIGHTS[0], 2 * num_tokens, 16)
        step = lay_out(segments, shape, num_tokens)
        # Reading one of them gives tokens another slot, or their own twice.
        length, num_tiles = min(TILE_HEIGHTS[0], segments.num_lora_tokens), int(step.num_tiles)
        for tile in range(num_tiles, shape.num_tiles):
            step.tiles[tile] = torch.tensor([tile % len(case.kinds), 0, length, 0], dtype=torch.int32)
    moved = step.moved([tensor.to(case.device) for tensor in step.tensors()])
    ops.begin(segments, moved, moved)


def refresh(ops: TritonEndOps, case: EndCase) -> None:
    """The same step again, with what its slots are bound to now, at the addresses of the step before."""
    ops.begin(build_segments(case.slots), ops._tokens, ops._rows)


def run(
    case: EndCase, problem: EndProblem, blocks: EndBlocks | None = None, captured: bool = False
) -> tuple[Tensor, Tensor]:
    """The kernels' embeddings and logits."""
    ops, segments = operations(case, problem, blocks), build_segments(case.slots)
    begin(ops, case, captured=captured)
    return launched(ops, problem, segments)


def launched(ops: TritonEndOps, problem: EndProblem, segments: object) -> tuple[Tensor, Tensor]:
    """What the launches make of the base's embeddings and logits."""
    embeddings, logits = problem.embeddings.clone(), problem.logits.clone()
    rows = torch.arange(len(problem.ids), device=problem.ids.device)
    ops.change_embeddings(problem.ids, segments, multiplier=problem.multiplier, out=embeddings)  # type: ignore[arg-type]
    ops.change_logits(problem.x, segments, rows, out=logits)  # type: ignore[arg-type]
    return embeddings, logits


Oracle = Callable[[EndChange, list[int]], tuple[Tensor, Tensor]]  # of a change and rows: values and sizes


def _embedded(case: EndCase, problem: EndProblem) -> Oracle:
    def expected(change: EndChange, rows: list[int]) -> tuple[Tensor, Tensor]:
        named, factor = problem.ids[rows], case.multiplier
        if isinstance(change, Replacement):
            value = change.weight[named].double() * factor
            return value, value.abs()
        a, b = change.a_t[named].double(), change.b.double()
        return _added(change, problem.embeddings[rows], a @ b * factor, a.abs() @ b.abs() * factor)

    return expected


def _logits(problem: EndProblem) -> Oracle:
    def expected(change: EndChange, rows: list[int]) -> tuple[Tensor, Tensor]:
        x = problem.x[rows].double()
        if isinstance(change, Replacement):
            weight = change.weight.double().T
            bias = weight.new_zeros(()) if change.bias is None else change.bias.double()
            return x @ weight + bias, x.abs() @ weight.abs() + bias.abs()
        hidden, b = x @ change.a_t.double(), change.b.double()
        return _added(change, problem.logits[rows], hidden @ b, hidden.abs() @ b.abs())

    return expected


def _added(change: LowRank, base: Tensor, added: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    affine, scaled = change.affine or Affine(), base.double()
    if affine.scale is not None:
        scaled = scaled * affine.scale.double()
    shift = scaled.new_zeros(()) if affine.shift is None else affine.shift.double()
    return scaled + shift + added, scaled.abs() + shift.abs() + size


def errors(case: EndCase, problem: EndProblem, found: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Largest error of embeddings and of logits, in units of the dtype's rounding; see `cases.error`."""
    embeddings = _error(case, problem, (found[0], problem.embeddings), 0, _embedded(case, problem))
    return embeddings, _error(case, problem, (found[1], problem.logits), 1, _logits(problem))


def _error(
    case: EndCase, problem: EndProblem, tensors: tuple[Tensor, Tensor], end: int, oracle: Oracle
) -> float:
    """Infinite where a bit changed that must not, or a number is none."""
    (out, base), units = tensors, [0.0]
    for slot in {*case.slots}:
        rows = [row for row, used in enumerate(case.slots) if used == slot]
        bound = None if slot is None else problem.slots.rows[slot]
        change = (bound.side.embedding, bound.side.head)[end] if bound and bound.side else None
        if change is None:
            same = torch.equal(out[rows].view(torch.int16), base[rows].view(torch.int16))
            units.append(0.0 if same else float("inf"))
        elif bool(out[rows].isnan().any()):
            units.append(float("inf"))
        else:
            expected, size = oracle(change, rows)
            units.append(float(((out[rows].double() - expected).abs() / (size + 1e-3)).max()))
    return max(units) / EPSILON[case.dtype]


def worst_errors(
    cases: Sequence[EndCase], captured: bool = False, blocks: EndBlocks | None = None
) -> tuple[float, float]:
    """Largest errors over the cases, of embeddings and of logits."""
    found = []
    for case in cases:
        problem = build(case)
        found.append(errors(case, problem, run(case, problem, blocks, captured)))
    return max(one for one, _ in found), max(other for _, other in found)
