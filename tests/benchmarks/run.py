"""A run: when a system began a workload and when which stream got how many tokens.

Values only, of `time.monotonic`. What a rate counts is said here, once for every system.
"""

from collections.abc import Sequence
from dataclasses import dataclass

Arrivals = Sequence[tuple[float, int]]  # (when in seconds, how many tokens), of one stream


@dataclass(frozen=True, slots=True)
class Run:
    """Every stream of a workload, to its end."""

    began_s: float
    arrivals: Sequence[Arrivals]
    num_prompt_tokens: int  # over all streams
    num_cached_tokens: int = 0  # of these, taken from a prefix cache

    @property
    def total_rate(self) -> float:
        """Prompt and new tokens a second, from the beginning to the last token."""
        end_s = max(stream[-1][0] for stream in self.arrivals)
        new_tokens = sum(count for stream in self.arrivals for _, count in stream)
        return (self.num_prompt_tokens + new_tokens) / (end_s - self.began_s)

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens a second, until every stream has its first token."""
        return self.num_prompt_tokens / (self._all_started_s - self.began_s)

    @property
    def decode_rate(self) -> float:
        """Tokens a second while every stream decodes: after the last began, until the first has ended."""
        begin_s, end_s = self._all_started_s, min(stream[-1][0] for stream in self.arrivals)
        if end_s <= begin_s:
            raise ValueError("arrivals: a stream ended before the last began; give it more tokens")
        tokens = sum(
            count for stream in self.arrivals for when_s, count in stream if begin_s < when_s <= end_s
        )
        return tokens / (end_s - begin_s)

    @property
    def _all_started_s(self) -> float:
        return max(stream[0][0] for stream in self.arrivals)
