"""Settling: while workers join one after another, loads wait for the last of them.

A fleet that starts says hello within seconds; each worker that joins takes adapters over from those before
it. Loads that are given meanwhile are given again: a quarter more than needed. Requests wait for none of
this: what they want is loaded for them. Knows neither workers nor commands. Invariant: a load is held
back for MOST_S at the longest, however many still come.
"""

from collections.abc import Callable

from control_plane.placement.holders import Pair

QUIET_S = 0.25  # without another hello: that was the last. Hundreds of workers come milliseconds apart.
MOST_S = 3.0


class Settling:
    """The loads that wait, by the pair (worker, adapter) they are about."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began_s = 0.0
        self._ends_s = 0.0
        self._waiting: dict[Pair, None] = {}

    def joined(self) -> None:
        """A worker came."""
        now_s = self._clock()
        if now_s >= self._ends_s:
            self._began_s = now_s
        self._ends_s = min(now_s + QUIET_S, self._began_s + MOST_S)

    @property
    def holds_back(self) -> bool:
        """Whether loads are to wait now."""
        return self._clock() < self._ends_s

    @property
    def next_s(self) -> float | None:
        """When something that waits may go on, unless another worker comes."""
        return self._ends_s if self._waiting else None

    def wait(self, pair: Pair) -> None:
        """A load waits."""
        self._waiting[pair] = None

    def release(self) -> Pair | None:
        """One that waits no longer; None when there is none."""
        return None if self.holds_back or not self._waiting else self._waiting.popitem()[0]
