"""Interleaved measuring: systems take turns, and a ratio is the median of its rounds' ratios.

Knows nothing of what is measured: seconds or rates. The machine's speed drifts by tens of percent over
minutes, and this way hits both sides of every pair; every other round goes backwards, so that no system
always runs after the same neighbour.
"""

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Measure = Callable[[int], float]  # of the round's number; negative numbers are warm-up


@dataclass(frozen=True, slots=True)
class Rounds:
    """What every system measured, in the order of the rounds."""

    values: Mapping[str, Sequence[float]]

    def median(self, name: str) -> float:
        """Of one system's rounds."""
        return statistics.median(self.values[name])

    def ratio(self, of: str, to: str) -> float:
        """Median over the rounds of one system's value / another's of the same round."""
        pairs = zip(self.values[of], self.values[to], strict=True)
        return statistics.median(numerator / denominator for numerator, denominator in pairs)

    def describe(self, unit: str, scale: float = 1.0) -> None:
        """Print every system's median and range, times `scale`."""
        for name, values in self.values.items():
            low, high = min(values), max(values)
            print(
                f"  {name:<44} {scale * self.median(name):9.2f} {unit}"
                f"  ({scale * low:.2f} to {scale * high:.2f}, {len(values)} rounds)"
            )


def interleave(
    systems: Mapping[str, Measure], num_rounds: int, *, num_warm_ups: int = 1, title: str = ""
) -> Rounds:
    """Measure every system once a round; the rounds before the first warm up and are not kept."""
    values: dict[str, list[float]] = {name: [] for name in systems}
    for number in range(-num_warm_ups, num_rounds):
        for name in systems if number % 2 == 0 else reversed(systems):
            value = systems[name](number)
            if number >= 0:
                values[name].append(value)
        if title:
            print(f"  {title}: round {number + 1} of {num_rounds}", file=sys.stderr, flush=True)
    return Rounds(values)
