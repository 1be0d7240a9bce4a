"""Tally: what one generation used and how it went, read from its events."""

import time
from collections.abc import Callable
from dataclasses import replace

from data_plane.adapters.revision import Tier
from data_plane.direct import DirectUsage
from data_plane.engine.events import Delta, Event, Failed, Finished, Started
from data_plane.errors import DeadlineExceeded, InvalidRequest, Overloaded, RequestCancelled, WorkerError

_COLD = frozenset({Tier.DISK, Tier.SOURCE})
# What a request brings about itself says nothing of the revision that it got.
_CALLERS_FAULT = (RequestCancelled, InvalidRequest)
# After a token it asked for much. Before one, a revision that hangs or finds no room looks like this.
_ONLY_BEFORE_A_TOKEN = (DeadlineExceeded, Overloaded)


class Tally:
    """Counts one request's tokens. Before it has started nothing was used."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s = clock()
        self._load_s = 0.0
        self._usage = DirectUsage()  # without the tokens since the start: a delta costs an addition
        self._num_new = 0

    @property
    def usage(self) -> DirectUsage:
        """What it used up to now."""
        return replace(self._usage, completion_tokens=self._num_new)

    def read(self, event: Event, prompt_tokens: int) -> None:
        """Take one event of a request with so many tokens of prompt."""
        match event:
            case Delta(token_ids=ids):
                self._num_new += len(ids)
                if self._usage.first_token_s is None:
                    self._usage = replace(self._usage, first_token_s=self._first_token_s())
            case Started(tier=tier):
                self._load_s = event.load_s
                self._usage = replace(self._usage, prompt_tokens=prompt_tokens, cold=tier in _COLD)
            case Finished():
                self._num_new = event.completion_tokens
                self._usage = replace(self._usage, prompt_tokens=event.prompt_tokens)
            case Failed(error=error):
                self._usage = replace(self._usage, failed=self._is_revisions(error))

    def _is_revisions(self, error: WorkerError) -> bool:
        if isinstance(error, _ONLY_BEFORE_A_TOKEN):
            return self._usage.first_token_s is None
        return not isinstance(error, _CALLERS_FAULT)

    def _first_token_s(self) -> float:
        return max(0.0, self._clock() - self._began_s - self._load_s)
