"""Tally: what one generation used and how it went, read from its events."""

import time
from collections.abc import Callable
from dataclasses import replace

from data_plane.adapters.revision import Tier
from data_plane.direct import DirectUsage
from data_plane.engine.events import Delta, Event, Failed, Finished, Started
from data_plane.errors import DeadlineExceeded, InvalidRequest, Overloaded, RequestCancelled

_COLD = frozenset({Tier.DISK, Tier.SOURCE})
# What a request brings about itself says nothing of the revision that it got.
_CALLERS_FAULT = (RequestCancelled, InvalidRequest, DeadlineExceeded, Overloaded)


class Tally:
    """Counts one request's tokens. Before it has started nothing was used."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s = clock()
        self._load_s = 0.0
        self._usage = DirectUsage()

    @property
    def usage(self) -> DirectUsage:
        """What it used up to now."""
        return self._usage

    def read(self, event: Event, prompt_tokens: int) -> None:
        """Take one event of a request with so many tokens of prompt."""
        used = self._usage
        match event:
            case Started(tier=tier):
                self._load_s = event.load_s
                self._usage = replace(used, prompt_tokens=prompt_tokens, cold=tier in _COLD)
            case Delta(token_ids=ids):
                self._usage = replace(
                    used,
                    completion_tokens=used.completion_tokens + len(ids),
                    first_token_s=self._first_token_s() if used.first_token_s is None else used.first_token_s,
                )
            case Finished():
                self._usage = replace(
                    used, prompt_tokens=event.prompt_tokens, completion_tokens=event.completion_tokens
                )
            case Failed(error=error):
                self._usage = replace(used, failed=not isinstance(error, _CALLERS_FAULT))

    def _first_token_s(self) -> float:
        return max(0.0, self._clock() - self._began_s - self._load_s)
