"""Where the tokens of a step are in the paged KV cache: made once per step, used by every layer.

Knows nothing of sequences, requests or layers. Masks are made on first use, one a window size,
because most models ask for one in every layer. Invariant: no block listed is read past the
context of its own sequence with a weight other than zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PagedChunk:
    """Consecutive tokens of one sequence: `length` of them after `past` that are in the cache."""

    past: int
    length: int
    blocks: tuple[int, ...]  # cover past + length tokens, maybe more


@dataclass(frozen=True, slots=True)
class Prefill:
    """A chunk of more than one token."""

    first_row: int  # of the batch
    length: int
    past: int  # tokens of the sequence computed before
    blocks: Tensor  # int64, cover past + length tokens
    _masks: dict[tuple[torch.dtype, int | None, int], Tensor] = field(default_factory=dict, repr=False)

    def mask(self, dtype: torch.dtype, window: int | None, group: int) -> Tensor:
        """[group * length, past + length], 0 where a token may look and -inf elsewhere.

        The rows repeat for the `group` query heads that are packed on one KV head.
        """
        kept = self._masks.get((dtype, window, group))
        if kept is None:
            query = torch.arange(self.past, self.past + self.length)[:, None]
            kept = _additive(query - torch.arange(self.past + self.length), dtype, window).repeat(group, 1)
            self._masks[dtype, window, group] = kept
        return kept


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """All tokens of a step: first `num_decodes` one-token chunks, then the prefills."""

    rows: Tensor  # [num_tokens] int64: block * block_size + offset of each token
    num_decodes: int
    decode_blocks: Tensor  # [num_decodes * max_blocks] int64, short lists padded with their last block
    contexts: Tensor  # [num_decodes] int64: tokens a decode sees, itself included
    block_size: int
    prefills: tuple[Prefill, ...]
    _masks: dict[tuple[torch.dtype, int | None], Tensor] = field(default_factory=dict, repr=False)

    def decode_mask(self, dtype: torch.dtype, window: int | None) -> Tensor:
        """[num_decodes, 1, 1, max_context], 0 where a token may look and -inf elsewhere."""
        kept = self._masks.get((dtype, window))
        if kept is None:
            width = self.decode_blocks.shape[0] // self.num_decodes * self.block_size
            distance = (self.contexts - 1)[:, None] - torch.arange(width)
            kept = _additive(distance, dtype, window)[:, None, None]
            self._masks[dtype, window] = kept
        return kept


def paged_batch(chunks: Sequence[PagedChunk], block_size: int) -> PagedBatch:
    """Describe a step; `chunks` are in the order of their rows, those of one token first."""
    num_decodes = sum(chunk.length == 1 for chunk in chunks)
    tables = [_used_blocks(chunk, block_size) for chunk in chunks]
    width = max(map(len, tables[:num_decodes]), default=0)
    # Padded with a sequence's own block, so that no sequence ever reads another's.
    padded = [
        block for table in tables[:num_decodes] for block in (*table, *table[-1:] * (width - len(table)))
    ]
    prefills, first_row = [], num_decodes
    for chunk, table in zip(chunks[num_decodes:], tables[num_decodes:], strict=True):
        prefills.append(Prefill(first_row, chunk.length, chunk.past, torch.tensor(table)))
        first_row += chunk.length
    return PagedBatch(
        rows=torch.tensor([row for chunk in chunks for row in _cache_rows(chunk, block_size)]),
        num_decodes=num_decodes,
        decode_blocks=torch.tensor(padded, dtype=torch.int64),
        contexts=torch.tensor([chunk.past + 1 for chunk in chunks[:num_decodes]], dtype=torch.int64),
        block_size=block_size,
        prefills=tuple(prefills),
    )


def _used_blocks(chunk: PagedChunk, block_size: int) -> tuple[int, ...]:
    return chunk.blocks[: -(-(chunk.past + chunk.length) // block_size)]


def _cache_rows(chunk: PagedChunk, block_size: int) -> list[int]:
    positions = range(chunk.past, chunk.past + chunk.length)
    return [chunk.blocks[p // block_size] * block_size + p % block_size for p in positions]


def _additive(distance: Tensor, dtype: torch.dtype, window: int | None) -> Tensor:
    """Mask from how far back each key is: the future is negative."""
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    return torch.zeros(distance.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
