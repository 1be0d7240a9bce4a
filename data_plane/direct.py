"""DirectRequests: requests that clients brought by themselves, until the control plane closed their accounts.

The API says when one begins and ends; the stream to the control plane takes from here what there is
to tell. Knows neither. Lives on the event loop's thread. Invariant: of what has ended and is not
settled, the control plane is told again and again, until telling cannot help any more.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

REPEAT_S = 5.0
# The control plane recognises a repeated end for 600 s. One that it gets later it would count twice.
MAX_AGE_S = 300.0
MAX_ENDED = 16_384  # not settled, about 1 KB each: a long outage of the control plane
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectUsage:
    """What a request used."""

    prompt_tokens: int = 0  # 0: nothing was computed
    completion_tokens: int = 0
    cold: bool | None = None  # its adapter was read from disk or source; None: it never was needed
    failed: bool = False  # and not by what its client sent or did
    first_token_s: float | None = None  # from its arrival, without the loading of its adapter


@dataclass(frozen=True, slots=True)
class Word:
    """What there is to tell of one request."""

    grant: str  # as it came
    usage: DirectUsage | None = None  # None: it runs
    ended_s: float = 0.0


class DirectRequests:
    """The direct requests of this worker."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._running: dict[str, Word] = {}
        self._ended: dict[str, Word] = {}  # oldest first
        self._news: dict[str, None] = {}
        self._changed = asyncio.Event()
        self._settled = asyncio.Event()
        self._repeat_at_s = 0.0

    def begin(self, request_id: str, grant: str) -> None:
        """A request came."""
        self._running[request_id] = Word(grant)
        self._tell(request_id)

    def end(self, request_id: str, usage: DirectUsage) -> None:
        """It has ended, however it did."""
        word = self._running.pop(request_id)
        self._ended[request_id] = replace(word, usage=usage, ended_s=self._clock())
        self._tell(request_id)
        self._drop()

    def settle(self, request_id: str) -> None:
        """Its account is closed: nothing is to be told of it any more."""
        self._ended.pop(request_id, None)
        self._settled.set()

    def repeat(self) -> None:
        """Tell everything again: to a control plane that may have heard nothing of it."""
        self._drop()
        for request_id in (*self._running, *self._ended):
            self._tell(request_id)
        self._repeat_at_s = self._clock() + REPEAT_S

    async def news(self) -> list[Word]:
        """Wait for what there is to tell, and return it; what is not settled comes again."""
        try:
            async with asyncio.timeout(max(0.0, self._repeat_at_s - self._clock())):
                await self._changed.wait()
        except TimeoutError:
            self.repeat()
        self._changed.clear()
        known = self._running | self._ended
        words = [known[request_id] for request_id in self._news if request_id in known]
        self._news.clear()
        return words

    async def idle(self) -> None:
        """Wait until everything is settled."""
        while self._running or self._ended:
            self._settled.clear()
            await self._settled.wait()

    def _tell(self, request_id: str) -> None:
        self._news[request_id] = None
        self._changed.set()

    def _drop(self) -> None:
        """Give up what is too old or too much: its reservation has expired, its usage is not counted."""
        oldest_s = self._clock() - MAX_AGE_S
        while self._ended:
            request_id, word = next(iter(self._ended.items()))
            if word.ended_s > oldest_s and len(self._ended) <= MAX_ENDED:
                return
            _log.warning("usage of a direct request was never settled", request_id=request_id)
            self.settle(request_id)
