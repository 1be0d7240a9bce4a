"""Two sequences computed by transformers alone and our way, for the self-check to compare.

Apart: each by itself, by eager attention. Flattened: both in one row of tokens, in chunks over
several steps, through the paged cache and the fused projections. The first sequence begins at
position 0; the second ends at the last position that a sequence may have, because a rope that is
scaled by the longest sequence of a batch is wrong for the others. Knows nothing of verdicts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from data_plane.kv_cache.pool import KvPool
from data_plane.models.base_model import BaseModel
from data_plane.models.build import bind_attention, fuse_projections
from data_plane.models.step import StepState
from data_plane.models.trace import ModelTrace
from kernels.cpu.attention import PagedAttention
from kernels.cpu.paging import PagedChunk, paged_batch

BLOCK_SIZE = 4
BLOCKS = ((5, 0, 3), (1, 4, 2))  # of the two sequences
TOKENS = (tuple(range(3, 14)), tuple(range(40, 47)))  # no number of tokens is one of heads


@dataclass(frozen=True, slots=True)
class TrialChunk:
    """`length` tokens of one of the sequences, after `past` of it."""

    sequence: int
    past: int
    length: int

    @property
    def span(self) -> range:
        """The tokens' places in the sequence."""
        return range(self.past, self.past + self.length)


Step = Sequence[TrialChunk]
# Fresh prefills, then a decode and a prefill with a past, then decodes.
STEPS: Sequence[Step] = (
    (TrialChunk(0, 0, 4), TrialChunk(1, 0, 5)),
    (TrialChunk(1, 5, 1), TrialChunk(0, 4, 6)),
    (TrialChunk(0, 10, 1), TrialChunk(1, 6, 1)),
)
ONE_STEP: Step = (TrialChunk(0, 0, len(TOKENS[0])), TrialChunk(1, 0, len(TOKENS[1])))


def first_positions(max_model_len: int) -> tuple[int, int]:
    """Where the two sequences begin."""
    return 0, max(0, max_model_len - len(TOKENS[1]))


def apart(model: PreTrainedModel, sequence: int, first_position: int) -> Tensor:
    """Logits [vocab_size] of the sequence's last token by transformers alone."""
    ids = TOKENS[sequence]
    logits: Tensor = model(
        input_ids=torch.tensor([ids]),
        position_ids=torch.arange(first_position, first_position + len(ids))[None],
        use_cache=False,
    ).logits
    return logits[0, -1]


class FlattenedTrial:
    """A model with our layers in it and an empty KV cache."""

    def __init__(
        self,
        model: PreTrainedModel,
        found: ModelTrace,
        first: tuple[int, int],
        attention: PagedAttention | None,
    ) -> None:
        state = StepState()
        shapes = [attention.shape for attention in found.attentions]
        num_blocks = sum(map(len, BLOCKS))
        kv = KvPool(shapes, num_blocks=num_blocks, block_size=BLOCK_SIZE, dtype=torch.float32)
        bind_attention(model, found, kv, state, attention)
        fuse_projections(model, found, state, lora=None)
        self._base, self._first = BaseModel(model, state), first

    def logits(self) -> Tensor:
        """Of the last token of each sequence after all steps, [2, vocab_size]."""
        last: dict[int, Tensor] = {}
        for step in STEPS:
            rows = self.forward(step)
            last.update((chunk.sequence, row) for chunk, row in zip(step, rows, strict=True))
        return torch.stack([last[sequence] for sequence in range(len(TOKENS))])

    def forward(self, step: Step) -> Tensor:
        """Logits of the last token of every chunk."""
        places = [(chunk.sequence, place) for chunk in step for place in chunk.span]
        return self._base.forward(
            torch.tensor([TOKENS[sequence][place] for sequence, place in places]),
            torch.tensor([self._first[sequence] + place for sequence, place in places]),
            torch.tensor([chunk.length for chunk in step]).cumsum(0) - 1,
            paged_batch([PagedChunk(c.past, c.length, BLOCKS[c.sequence]) for c in step], BLOCK_SIZE),
            None,
        )
