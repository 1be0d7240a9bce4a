"""Drives a runner as the scheduler would: prompts in chunks, then one token a step, mixed freely."""

from dataclasses import dataclass, field

import torch

from data_plane.engine.runtime import Runtime
from data_plane.scheduler.plan import Chunk, Draw, StepPlan
from data_plane.scheduler.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0)


@dataclass
class Sequence:
    """One sequence: its prompt, its slot, its blocks, and what came out."""

    number: int
    prompt: list[int]
    slot: int | None
    blocks: tuple[int, ...]
    chunk_size: int = 1000
    sampling: SamplingParams = GREEDY
    output: list[int] = field(default_factory=list)
    num_computed: int = 0

    def next_chunk(self) -> Chunk:
        tokens = [*self.prompt, *self.output][self.num_computed :][: self.chunk_size]
        is_last = self.num_computed + len(tokens) == len(self.prompt) + len(self.output)
        draw = Draw(self.sampling, self.sampling.seed or 0, len(self.output), True) if is_last else None
        return Chunk(self.number, tuple(tokens), self.num_computed, self.blocks, self.slot, draw)


def step(runtime: Runtime, sequences: list[Sequence]) -> None:
    """Compute one chunk of each sequence and append what was drawn."""
    chunks = sorted((sequence.next_chunk() for sequence in sequences), key=lambda c: len(c.token_ids) > 1)
    result = runtime.runner.run(StepPlan(tuple(chunks)))
    by_number = {sequence.number: sequence for sequence in sequences}
    for chunk in chunks:
        by_number[chunk.sequence_id].num_computed += len(chunk.token_ids)
    for token in result.tokens:
        by_number[token.sequence_id].output.append(token.token_id)


def logits(runtime: Runtime, sequences: list[Sequence]) -> torch.Tensor:
    """Logits of one step, in the order of the sequences."""
    plan = StepPlan(tuple(sequence.next_chunk() for sequence in sequences))
    return runtime.runner.logits(plan)
