"""Tally: what one generation used, read from its events."""

from data_plane.adapters.revision import Tier
from data_plane.direct import DirectUsage
from data_plane.engine.events import Delta, Event, Finished, Started

_COLD = frozenset({Tier.DISK, Tier.SOURCE})


class Tally:
    """Counts one request's tokens. Before it has started nothing was used."""

    def __init__(self) -> None:
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
                self._usage = DirectUsage(prompt_tokens=prompt_tokens, cold=tier in _COLD)
            case Delta(token_ids=ids):
                self._usage = DirectUsage(
                    prompt_tokens=used.prompt_tokens,
                    completion_tokens=used.completion_tokens + len(ids),
                    cold=used.cold,
                )
            case Finished():
                self._usage = DirectUsage(
                    prompt_tokens=event.prompt_tokens,
                    completion_tokens=event.completion_tokens,
                    cold=used.cold,
                )
