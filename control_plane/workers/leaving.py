"""Leaving: when a worker that drains may end.

Knows what the fleet says of it and for how long it has drained here. Invariant: a hand-over that cannot
be finished (nobody has the room) delays a worker by `patience_s` at most; requests are its own to finish.
"""

from collections.abc import Callable

from control_plane.errors import NotFound
from control_plane.placement.hand_over import is_handed_over
from control_plane.workers.fleet import Fleet
from control_plane.workers.types import WorkerState

PATIENCE_S = 60.0  # a load takes seconds; what has not moved by then has nowhere to go


class Leaving:
    """The drains of this replica's workers."""

    def __init__(self, fleet: Fleet, clock: Callable[[], float], *, patience_s: float = PATIENCE_S) -> None:
        self._fleet = fleet
        self._clock = clock
        self._patience_s = patience_s
        self._since_s: dict[str, float] = {}  # worker → when it was first seen to drain

    def may_leave(self, worker_id: str) -> bool:
        """Whether all that its drain waits for has been done."""
        try:
            worker = self._fleet.get(worker_id)
        except NotFound:
            return False
        if worker.state is not WorkerState.DRAINING:
            self._since_s.pop(worker_id, None)
            return False
        since_s = self._since_s.setdefault(worker_id, self._clock())
        if is_handed_over(worker, self._fleet.workers()):
            return True
        return self._clock() - since_s >= self._patience_s
