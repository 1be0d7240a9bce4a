"""Unknown: requests that nobody could answer, remembered for a short time.

Invariant: at most `max_requests` are remembered, the oldest go first.
"""

from collections import OrderedDict
from collections.abc import Callable

from control_plane.resolvers.types import ResolveRequest


class Unknown:
    """Negative answers. Only names are remembered."""

    def __init__(self, clock: Callable[[], float], ttl_s: float, max_requests: int) -> None:
        self._clock = clock
        self._ttl_s = ttl_s
        self._max_requests = max_requests
        self._until: OrderedDict[ResolveRequest, float] = OrderedDict()  # when to ask again

    def __contains__(self, request: ResolveRequest) -> bool:
        return self._until.get(request, float("-inf")) > self._clock()

    def __len__(self) -> int:
        return len(self._until)

    def add(self, request: ResolveRequest) -> None:
        """Remember that nobody has it."""
        if request.source:
            return  # a path that was just mistyped or is being copied is asked for again at once
        self._until[request] = self._clock() + self._ttl_s
        self._until.move_to_end(request)
        while len(self._until) > self._max_requests:
            self._until.popitem(last=False)
