"""A step's place in the paged KV cache as GPU attention reads it.

    starts    [num_chunks + 1]           int32: where each chunk's tokens begin, and the end
    contexts  [num_chunks]               int32: tokens each chunk's sequence has, the chunk included
    ends      [num_chunks + 1]           int32: sums of contexts, for kernels that ask
    blocks    [num_chunks, max_blocks]   int32

Made on the host from the step's chunks, moved with the rest of the step. `DeviceBatch` is also a
`PagedBatch`, so that plain PyTorch can attend where the library's kernel cannot. A captured graph
has one width of `blocks` and one longest context for all its replays: see `room`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

import torch
from torch import Tensor

from kernels.cpu.paging import PagedBatch, PagedChunk, Prefill


@dataclass(frozen=True, slots=True)
class ChunkTable:
    """Every chunk of a step, one-token chunks first."""

    starts: Tensor
    contexts: Tensor
    ends: Tensor
    blocks: Tensor
    max_length: int  # of a chunk
    max_context: int

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What a step moves."""
        return self.starts, self.contexts, self.ends, self.blocks

    def moved(self, tensors: Sequence[Tensor]) -> "ChunkTable":
        """The same with these tensors."""
        starts, contexts, ends, blocks = tensors
        return replace(self, starts=starts, contexts=contexts, ends=ends, blocks=blocks)


def chunk_table(chunks: Sequence[PagedChunk], block_size: int, room: int | None = None) -> ChunkTable:
    """Describe the chunks in host memory; `room` is the tokens that every sequence may grow to."""
    contexts = [chunk.past + chunk.length for chunk in chunks]
    longest = max(contexts) if room is None else room
    width = -(-longest // block_size)
    blocks = torch.zeros(len(chunks), width, dtype=torch.int32)
    for row, (chunk, context) in enumerate(zip(chunks, contexts, strict=True)):
        used = chunk.blocks[: -(-context // block_size)]
        blocks[row, : len(used)] = torch.tensor(used, dtype=torch.int32)
        # Past a sequence's end its own last block, so that no sequence ever names another's.
        blocks[row, len(used) :] = used[-1]
    return ChunkTable(
        starts=torch.tensor([0, *accumulate(chunk.length for chunk in chunks)], dtype=torch.int32),
        contexts=torch.tensor(contexts, dtype=torch.int32),
        ends=torch.tensor([0, *accumulate(contexts)], dtype=torch.int32),
        blocks=blocks,
        max_length=max(chunk.length for chunk in chunks),
        max_context=longest,
    )


@dataclass(frozen=True, slots=True)
class DevicePrefill(Prefill):
    """A chunk whose blocks are on the device; masks are made on the host, once a step and window."""

    device: torch.device = field(kw_only=True)

    def mask(self, dtype: torch.dtype, window: int | None, group: int) -> Tensor:
        """See `Prefill.mask`."""
        kept = self._masks.get((dtype, window, group))
        if kept is None:
            kept = Prefill(self.first_row, self.length, self.past, self.blocks).mask(dtype, window, group)
            kept = self._masks[dtype, window, group] = kept.to(self.device)
        return kept


@dataclass(frozen=True, slots=True)
class DeviceBatch(PagedBatch):
    """All tokens of a step, on the device."""

    table: ChunkTable = field(kw_only=True)
    host: PagedBatch = field(kw_only=True)

    def decode_mask(self, dtype: torch.dtype, window: int | None) -> Tensor:
        """See `PagedBatch.decode_mask`."""
        kept = self._masks.get((dtype, window))
        if kept is None:
            kept = self.host.decode_mask(dtype, window).to(self.rows.device)
            self._masks[dtype, window] = kept
        return kept


def on_device(host: PagedBatch, table: ChunkTable, rows: Tensor) -> DeviceBatch:
    """The batch of a step whose table and rows were moved.

    What plain PyTorch reads beside them is moved when it is first asked for blocks: see `gathered`.
    """
    return DeviceBatch(
        rows=rows,
        num_decodes=host.num_decodes,
        decode_blocks=host.decode_blocks,
        contexts=host.contexts,
        block_size=host.block_size,
        prefills=host.prefills,
        table=table,
        host=host,
    )


def gathered(batch: DeviceBatch) -> DeviceBatch:
    """The same for attention that gathers blocks: decode blocks and prefills on the device too."""
    device = batch.rows.device
    prefills = tuple(
        DevicePrefill(p.first_row, p.length, p.past, p.blocks.to(device), device=device)
        for p in batch.host.prefills
    )
    return replace(batch, decode_blocks=batch.host.decode_blocks.to(device), prefills=prefills)
