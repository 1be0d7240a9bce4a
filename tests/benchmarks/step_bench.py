"""Steps of the model runner alone: plans of chosen shape, adapters of chosen rank in chosen slots.

Below the scheduler, so that every step of a comparison has the same sequences at the same positions, and
no more than the adapters differ. Slots and pages are handed out here; nothing else uses the pool.
"""

import random
import time
from collections.abc import Sequence
from pathlib import Path

from data_plane.adapters.layout import pages_for
from data_plane.adapters.packing import PackedLora
from data_plane.config import EngineConfig
from data_plane.engine.runtime import build_runtime
from data_plane.scheduler.plan import Chunk, Draw, StepPlan
from data_plane.scheduler.sampling import SamplingParams
from tests.oracle import MODEL_DIR

GREEDY = Draw(SamplingParams(temperature=0, ignore_eos=True), seed=0, output_index=0, allow_eos=True)
# Any tokens of the vocabulary will do.
NUM_TOKEN_IDS = 256


class StepBench:
    """A runtime whose steps are planned by the caller."""

    def __init__(self, model: Path = MODEL_DIR, **settings: object) -> None:
        config = EngineConfig(model=model, **settings)
        self.runtime = build_runtime(config)
        self._block_size = self.runtime.block_size
        self._num_bound = 0
        self._rng = random.Random(0)

    def place(self, adapters: Sequence[PackedLora]) -> None:
        """Put the adapters into slots 0, 1, …; every other slot is empty."""
        pool = self.runtime.rank_pool
        for slot in range(self._num_bound):
            pool.unbind(slot)
        first = 0
        for slot, adapter in enumerate(adapters):
            pages = tuple(range(first, first + pages_for(adapter.rank)))
            pool.write(pages, adapter)
            pool.bind(slot, pages, adapter)
            first = pages[-1] + 1
        self._num_bound = len(adapters)

    def decodes(self, num_streams: int, context: int, num_adapters: int) -> StepPlan:
        """One new token for each stream after `context` tokens; adapters in turn, 0: base only."""
        return StepPlan(
            tuple(
                self._chunk(stream, 1, context, stream % num_adapters if num_adapters else None)
                for stream in range(num_streams)
            )
        )

    def prefill(self, num_tokens: int, slot: int | None) -> StepPlan:
        """One prompt from its first token."""
        return StepPlan((self._chunk(0, num_tokens, 0, slot),))

    def seconds(self, plan: StepPlan) -> float:
        """Compute the step; its wall time."""
        began_s = time.perf_counter()
        self.runtime.runner.run(plan)
        return time.perf_counter() - began_s

    def _chunk(self, sequence: int, num_tokens: int, start: int, slot: int | None) -> Chunk:
        num_blocks = -(-(start + num_tokens) // self._block_size)
        tokens = tuple(self._rng.randrange(NUM_TOKEN_IDS) for _ in range(num_tokens))
        blocks = tuple(range(sequence * num_blocks, (sequence + 1) * num_blocks))
        return Chunk(sequence, tokens, start, blocks, slot, GREEDY)
