"""Live requests: every request from `add` to its last event, with its output and its deadline.

Knows nothing of blocks, adapters or steps. A request is here exactly as long as it can still say
something; one that has left takes its deadline along.
"""

import heapq
from collections.abc import Iterator

from data_plane.engine.outputs import RequestOutput
from data_plane.scheduler.request import Request


class LiveRequests:
    """Requests by id; a deadline is looked up without asking every one of them."""

    def __init__(self) -> None:
        self._requests: dict[str, Request] = {}
        self._outputs: dict[str, RequestOutput] = {}
        self._deadlines: list[tuple[float, int, Request]] = []  # a heap; those that ended are skipped

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._requests

    def __iter__(self) -> Iterator[Request]:
        """A snapshot, so that requests may end meanwhile."""
        return iter(tuple(self._requests.values()))

    @property
    def next_deadline_s(self) -> float | None:
        """When the next request's time runs out, on the engine's clock."""
        while self._deadlines and not self._deadlines[0][2].live:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def add(self, request: Request, output: RequestOutput) -> None:
        """A request begins."""
        self._requests[request.id] = request
        self._outputs[request.id] = output
        if request.deadline_s is not None:
            heapq.heappush(self._deadlines, (request.deadline_s, request.order, request))

    def get(self, request_id: str) -> Request | None:
        """A live request; None when it has ended."""
        return self._requests.get(request_id)

    def output(self, request: Request) -> RequestOutput:
        """What a live request has said."""
        return self._outputs[request.id]

    def expired(self, now_s: float) -> Iterator[Request]:
        """Each request whose time has run out; the caller ends it before it asks for the next."""
        while (deadline_s := self.next_deadline_s) is not None and deadline_s <= now_s:
            yield heapq.heappop(self._deadlines)[2]

    def remove(self, request: Request) -> None:
        """A request has ended."""
        del self._requests[request.id], self._outputs[request.id]
