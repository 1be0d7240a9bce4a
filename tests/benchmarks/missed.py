"""Explains figures that missed their goals: the breakdown of the steps behind them."""

from collections.abc import Callable, Mapping

from tests.benchmarks.goals import GOALS
from tests.benchmarks.step_profile import break_down

Works = Mapping[str, tuple[Callable[[], object], int]]  # by title: what to do, how often


def explain_missed(figures: Mapping[str, float], works: Mapping[str, Works]) -> None:
    """Profile the works of every figure, by its key, that is beyond its goal."""
    for key, titled in works.items():
        if GOALS[key].reached(figures[key]):
            continue
        print(f"  {key} {figures[key]:.3f} misses {GOALS[key].value:g}; one step of it:")
        for title, (work, num_times) in titled.items():
            break_down(work, num_times).describe(title)
