"""Pace: how long a piece of work may hold the event loop before others have their turn."""

import asyncio
from collections.abc import Callable

SLICE_S = 0.003  # with the piece that runs over it, below 5 ms


class Pace:
    """The time slice of one task."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ends_s = clock() + SLICE_S

    @property
    def is_over(self) -> bool:
        """Whether it is time to rest."""
        return self._clock() >= self._ends_s

    async def rest(self) -> None:
        """Let everybody else run once, when it is time."""
        if self.is_over:
            await asyncio.sleep(0)
            self._ends_s = self._clock() + SLICE_S
