"""Batch: the step being planned, under its token budget.

Owns what is planned so far; knows nothing of blocks or queues. Decodes come first in the plan; room
for them is set aside before the first prefill, so a long prompt never costs a running stream its token.
"""

from data_plane.scheduler.plan import Chunk, Draw, StepPlan
from data_plane.scheduler.request import Request, Sequence

Planned = tuple[Request, Sequence, int]  # the last: tokens computed


class Batch:
    """Chunks of one step."""

    def __init__(self, max_tokens: int, num_decodes: int) -> None:
        self.prefill_left = max_tokens - num_decodes
        self._decodes: list[Chunk] = []
        self._prefills: list[Chunk] = []
        self._decoding: list[Planned] = []
        self._prefilling: list[Planned] = []

    def add(self, request: Request, sequence: Sequence, num_tokens: int) -> None:
        """Compute the next tokens of a sequence, whose table covers them."""
        start = sequence.num_computed
        end = start + num_tokens
        tokens = sequence.token_ids
        table = sequence.table
        assert table is not None, "a sequence without blocks is not planned"
        last = end == len(tokens)
        chunk = Chunk(
            sequence.id,
            (tokens[-1],) if num_tokens == 1 and last else tuple(tokens[start:end]),
            start,
            table.blocks,
            request.slot,
            _draw(request, sequence) if last else None,
        )
        if num_tokens == 1:
            self._decodes.append(chunk)
            self._decoding.append((request, sequence, 1))
        else:
            self._prefills.append(chunk)
            self._prefilling.append((request, sequence, num_tokens))

    def plan(self) -> StepPlan:
        """The step as plain data."""
        return StepPlan((*self._decodes, *self._prefills))

    def planned(self) -> list[Planned]:
        """Who computes what, in the plan's order."""
        return self._decoding + self._prefilling


def _draw(request: Request, sequence: Sequence) -> Draw:
    sampling = request.sampling
    num_outputs = sequence.num_outputs
    allow_eos = num_outputs >= sampling.min_tokens
    if sampling.penalised:
        return Draw(sampling, sequence.seed, num_outputs, allow_eos, request.prompt_ids, sequence.output_ids)
    return Draw(sampling, sequence.seed, num_outputs, allow_eos)
