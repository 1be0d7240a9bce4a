"""SpentGrants: which grants were used, for as long as they could be used again.

Bounded by the rate of requests times the life of a grant (30 s and 150 bytes each: 5 MB at 1,000/s).
"""

import time
from collections.abc import Callable

from data_plane.errors import GrantRefused


class SpentGrants:
    """Request ids of grants by when they end, oldest first."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock  # Unix time, as in grants
        self._ends_s: dict[str, float] = {}

    def spend(self, request_id: str, ends_s: float) -> None:
        """Note the use of a grant that is accepted until `ends_s`; raise GrantRefused the second time."""
        if request_id in self._ends_s:
            raise GrantRefused("the grant was used before: it is good for one request")
        self._forget()
        self._ends_s[request_id] = ends_s

    def _forget(self) -> None:
        now_s = self._clock()
        while self._ends_s:
            request_id, ends_s = next(iter(self._ends_s.items()))
            if ends_s > now_s:
                return
            del self._ends_s[request_id]
