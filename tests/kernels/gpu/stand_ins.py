"""What only a GPU has, done on a CPU: torch's paged attention as its documentation describes it, memory of
a device's own, and a recorder whose graphs run their work again.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor

from kernels.gpu.packed import PackedLayout
from kernels.lora.changes import TorchEndOps
from kernels.lora.end_ops import EndOps
from kernels.lora.ops import LoraOps
from kernels.lora.pool import LoraModule, SlotTable
from kernels.lora.segments import Segments, Tile
from kernels.lora.triton.configs import rank_bound
from kernels.lora.triton.tiles import LaunchShape, StepTiles, lay_out


def documented_varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: Tensor,
    block_table: Tensor,
) -> Tensor:
    """`torch.nn.attention.varlen.varlen_attn` over pages; the last query sees the last key."""
    heads, kv_heads = query.shape[1], key.shape[2]
    assert enable_gqa == (heads != kv_heads)
    assert {t.dtype for t in (cu_seq_q, seqused_k, block_table)} == {torch.int32}
    starts, used = cu_seq_q.tolist(), seqused_k.tolist()
    if cu_seq_k is not None:
        assert cu_seq_k.tolist() == [0, *torch.tensor(used).cumsum(0).tolist()]
    out = torch.full_like(query, float("nan"))
    for i, (begin, end) in enumerate(pairwise(starts)):
        length, context = end - begin, used[i]
        assert length <= max_q
        assert context <= max_k <= block_table.shape[1] * key.shape[1]
        pages = block_table[i].long()
        k = key[pages].flatten(0, 1)[:context].repeat_interleave(heads // kv_heads, dim=1).float()
        v = value[pages].flatten(0, 1)[:context].repeat_interleave(heads // kv_heads, dim=1).float()
        scores = torch.einsum("qhd,khd->hqk", query[begin:end].float(), k) * scale
        back = (torch.arange(length)[:, None] + context - length) - torch.arange(context)[None]
        left, right = window_size
        hidden = (back < -right) if right >= 0 else torch.zeros_like(back, dtype=torch.bool)
        if left >= 0:
            hidden |= back > left
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        out[begin:end] = torch.einsum("hqk,khd->qhd", weights, v).to(out.dtype)
    return out


def plain_write_kv(key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, rows: Tensor) -> None:
    """The KV write, by torch."""
    for new, cache in ((key, k_cache), (value, v_cache)):
        cache.view(-1, *cache.shape[2:]).index_copy_(0, rows, new)


class BufferedDevice:
    """Implements `Device` on the CPU or on `meta`, with buffers as a GPU has them; `uploads` counts."""

    def __init__(self, name: str = "cpu") -> None:
        self._device, self.uploads = torch.device(name), 0

    @property
    def torch(self) -> torch.device:
        return self._device

    def staging(self, tensor: Tensor) -> Tensor:
        return tensor.clone()

    def put(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, copy=True)

    def upload(self, tensors: Sequence[Tensor], into: Tensor | None = None) -> tuple[Tensor, ...]:
        self.uploads += 1
        layout = PackedLayout.of(tensors)
        packed = torch.empty(layout.num_bytes, dtype=torch.uint8)
        layout.fill(packed, tensors)
        if into is None:
            into = torch.empty(layout.num_bytes, dtype=torch.uint8, device=self._device)
        layout.check(into)
        into.copy_(packed)
        return layout.views(into)

    def beside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def free_bytes(self) -> int | None:
        return 1 << 30


class RerunGraph:
    def __init__(self, recorder: "RerunRecorder", work: Callable[[], Tensor]) -> None:
        self._recorder, self._work = recorder, work

    def replay(self) -> Tensor:
        self._recorder.replays += 1
        return self._work()


class RerunRecorder:
    """Records nothing: a replay runs the work again, with what is at its addresses."""

    def __init__(self) -> None:
        self.recorded, self.replays = 0, 0

    def record(self, work: Callable[[], Tensor]) -> RerunGraph:
        self.recorded += 1
        work()
        return RerunGraph(self, work)


class TableLoraOps(LoraOps):
    """Implements `TiledLoraOps` in fp32, from nothing but the tiles on the device, as launches do."""

    def __init__(self, modules: Sequence[LoraModule], *, max_rank: int, max_tokens: int) -> None:
        self._segments: Segments | None = None
        self._step: StepTiles | None = None

    def tiles(
        self, segments: Segments, shape: LaunchShape | None = None, max_tokens: int | None = None
    ) -> StepTiles:
        assert shape is None or shape.rank == rank_bound(shape.rank), "what Triton compiles for"
        return lay_out(segments, shape or LaunchShape(16, segments.num_tokens, 16), max_tokens)

    def begin(self, segments: Segments, step: StepTiles) -> None:
        self._segments, self._step = segments, step

    def add(self, x: Tensor, module: LoraModule, segments: Segments, *, out: Tensor) -> None:
        step = self._step
        assert step is not None
        for slot, start, length, _ in step.tiles[: int(step.num_tiles)].tolist():
            view, rows = module.view(slot), step.order[start : start + length].long()
            bound = module.slots.rows[slot]
            if view is None or bound is None:
                continue
            affine = bound.side.affines[module.index] if bound.side else None
            values = out[rows] if affine is None else affine(out[rows])
            hidden = (x[rows] @ view.a_t).view(length, view.rank, -1)
            for columns, i, b in view.b:
                values[:, columns] += hidden[:, : b.shape[0], i] @ b
            out[rows] = values


class TableEndOps(EndOps):
    """Implements `TiledEndOps` in plain PyTorch; of a step it knows what `begin` put on the device."""

    def __init__(self, slots: SlotTable, *, max_rank: int, device: torch.device, dtype: torch.dtype) -> None:
        self._plain = TorchEndOps(slots)
        self._tokens: StepTiles | None = None
        self._rows: StepTiles | None = None

    def tiles(self, rows: Segments) -> StepTiles:
        return lay_out(rows, LaunchShape(16, rows.num_tokens, 16))

    def begin(self, segments: Segments, tokens: StepTiles | None, rows: StepTiles | None) -> None:
        self._tokens, self._rows = tokens, rows

    def change_embeddings(self, ids: Tensor, segments: Segments, *, multiplier: Tensor, out: Tensor) -> None:
        if self._tokens is not None:
            there = _segments(self._tokens, len(ids))
            self._plain.change_embeddings(ids, there, multiplier=multiplier, out=out)

    def change_logits(self, x: Tensor, segments: Segments, rows: Tensor, *, out: Tensor) -> None:
        if self._rows is not None:
            self._plain.change_logits(x, _segments(self._rows, len(x)), torch.arange(len(x)), out=out)


def _segments(step: StepTiles, num_rows: int) -> Segments:
    listed = step.tiles[: int(step.num_tiles)].tolist()
    tiles = tuple(Tile(slot, start, length, None) for slot, start, length, _ in listed)
    return Segments(step.order.long(), tiles, num_rows)
