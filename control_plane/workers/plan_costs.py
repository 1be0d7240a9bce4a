"""PlanCosts: what planning cost so far, by what made it necessary.

Counts work (pairs of worker and adapter that were looked at, scores that were computed), which says
more than seconds of a busy machine; both are for operators and benchmarks, no decision reads them.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class Cause(Enum):
    """Why something was planned."""

    READ = "read"  # a new leader takes everything in
    ADAPTER = "adapter"  # one was registered, changed or deleted
    REPORT = "report"  # a worker holds something else now, joined or left
    SWEEP = "sweep"


@dataclass(slots=True)
class Cost:
    """What changes of one kind cost."""

    changes: int = 0
    pairs: int = 0
    scores: int = 0
    seconds: float = 0.0
    longest_s: float = 0.0  # the longest piece that nothing could interrupt

    def add(self, *, changes: int, pairs: int, scores: int, seconds: float) -> None:
        """Count a change, or a further piece of one."""
        self.changes += changes
        self.pairs += pairs
        self.scores += scores
        self.seconds += seconds
        self.longest_s = max(self.longest_s, seconds)


class PlanCosts:
    """A cost for each cause."""

    def __init__(self) -> None:
        self._costs: dict[Cause, Cost] = defaultdict(Cost)

    def __getitem__(self, cause: Cause) -> Cost:
        return self._costs[cause]

    def items(self) -> Iterator[tuple[Cause, Cost]]:
        """Yield what there was, dearest first."""
        yield from sorted(self._costs.items(), key=lambda item: -item[1].seconds)
