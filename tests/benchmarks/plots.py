"""The plots of `make bench`, as PNG files under build/."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
from matplotlib import pyplot

from tests.benchmarks.disturbance import Gaps
from tests.benchmarks.lora_steps import Curves
from tests.benchmarks.starvation import Waits

matplotlib.use("Agg")  # no display where benchmarks run


def plot_scale(curve: Mapping[int, float], path: Path) -> None:
    """Tokens a second by number of adapters."""
    figure, axes = pyplot.subplots(figsize=(6, 4))
    axes.plot(list(curve), list(curve.values()), marker="o")
    axes.set(xscale="log", xlabel="adapters (Zipf)", ylabel="tokens/s", title="Throughput by adapters")
    axes.set_ylim(bottom=0)
    _save(figure, path)


def plot_lora_steps(curves: Curves, path: Path) -> None:
    """Tokens a second by adapters in one batch, and the time of a step by rank."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    left.plot([str(count) for count in curves.rates], list(curves.rates.values()), marker="o")
    left.set(xlabel="adapters in the batch (rank 16)", ylabel="tokens/s", title="64 streams decode")
    right.plot(list(curves.step_s), [1000 * s for s in curves.step_s.values()], marker="o")
    right.set(xlabel="rank of 16 adapters (0: base only)", ylabel="ms", title="A step of 64 streams")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
    _save(figure, path)


def plot_gaps(gaps: Gaps, path: Path) -> None:
    """The distribution of the time between tokens, by kind of round."""
    figure, axes = pyplot.subplots(figsize=(6, 4))
    for kind, rounds in gaps.rounds.items():
        axes.ecdf([1000 * gap for measured in rounds for gap in measured.gaps_s], label=kind)
    axes.set(xlabel="ms between tokens", ylabel="share of tokens", title="Time between tokens")
    axes.legend(fontsize="small")
    _save(figure, path)


def plot_waits(waits: Mapping[str, Waits], path: Path) -> None:
    """The distribution of waits for a slot, by traffic and system."""
    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name, distribution in waits.items():
        axes.ecdf(distribution.steps, label=name)
    axes.set(xlabel="steps waited", ylabel="share of requests", title="64 adapters on 4 slots")
    axes.legend(fontsize="small")
    _save(figure, path)


def _save(figure: pyplot.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    print(f"  plot: {path}")
