"""InFlight: requests that this replica sent to workers whose reports may not show them yet.

A burst is routed faster than workers report it; without this count all of it would go to one worker.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

SHOWN_AFTER_S = 1.0  # workers report a change of load within 250 ms, and at least every 0.75 s


class InFlight:
    """A count for each worker."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> Mapping[str, int]:
        """Requests by worker."""
        return self._counts

    @contextmanager
    def sent(self, worker_id: str) -> Iterator[None]:
        """Count a request for the time of the block: its stream passes through here."""
        self._counts[worker_id] += 1
        try:
            yield
        finally:
            self._counts[worker_id] -= 1

    def told(self, worker_id: str) -> None:
        """Count a request that its client brings there by itself, until the worker's reports show it."""
        self._counts[worker_id] += 1
        asyncio.get_running_loop().call_later(SHOWN_AFTER_S, self._shown, worker_id)

    def _shown(self, worker_id: str) -> None:
        self._counts[worker_id] -= 1
