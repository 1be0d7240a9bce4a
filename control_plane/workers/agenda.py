"""Agenda: the pairs (worker, adapter) that the planner has yet to look at, now or at a later time.

Knows no commands: what to do about a pair is derived when it is taken. Invariant: a pair that was
added is taken after that at least once, and is in line once however often it was added.
"""

from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush

from control_plane.placement.holders import Pair
from control_plane.placement.plan import Rank
from control_plane.registry.types import AdapterKey


class Agenda:
    """One line a worker, the most wanted adapter first; and what is to be looked at later."""

    def __init__(self, rank: Callable[[AdapterKey], Rank]) -> None:
        self._rank = rank
        self._lines: dict[str, list[tuple[Rank, AdapterKey]]] = {}
        self._in_line: set[Pair] = set()
        self._later: list[tuple[float, Pair]] = []
        self._at_s: dict[Pair, float] = {}  # the one time of a pair in `_later` that counts

    def add(self, pairs: Iterable[Pair]) -> None:
        """Put pairs in line."""
        for pair in pairs:
            if pair not in self._in_line:
                self._in_line.add(pair)
                worker_id, key = pair
                heappush(self._lines.setdefault(worker_id, []), (self._rank(key), key))

    def postpone(self, pair: Pair, at_s: float) -> None:
        """Put a pair in line at a time, or at the one it has when that is earlier."""
        if at_s < self._at_s.get(pair, float("inf")):
            self._at_s[pair] = at_s
            heappush(self._later, (at_s, pair))

    @property
    def next_s(self) -> float | None:
        """When something postponed is due."""
        while self._later and self._is_stale(*self._later[0]):
            heappop(self._later)
        return self._later[0][0] if self._later else None

    def ripen(self, now_s: float) -> None:
        """Put in line what was postponed until now."""
        while (next_s := self.next_s) is not None and next_s <= now_s:
            _, pair = heappop(self._later)
            del self._at_s[pair]
            self.add([pair])

    def workers(self) -> Sequence[str]:
        """Return the workers with a line."""
        return tuple(self._lines)

    def take(self, worker_id: str) -> AdapterKey | None:
        """Take the first of a worker's line; None when there is none."""
        line = self._lines.get(worker_id)
        if line is None:
            return None
        _, key = heappop(line)
        if not line:
            del self._lines[worker_id]
        self._in_line.discard((worker_id, key))
        return key

    def _is_stale(self, at_s: float, pair: Pair) -> bool:
        return self._at_s.get(pair) != at_s
