"""The parts of `make bench`: what each measures, and the plots that it draws.

A part is called in a process of its own; `measure` is what such a process runs.
"""

import logging
import os
import sys
from collections.abc import Callable, Mapping

import structlog
import torch

from tests.benchmarks import (
    affinity,
    against_peers,
    bandwidth,
    control_plane,
    convergence,
    disturbance,
    fleet,
    flood,
    loading,
    lora_steps,
    plots,
    pool_use,
    registry_size,
    scale,
    serving,
    starvation,
)
from tests.benchmarks.goals import BUILD_DIR

Figures = dict[str, float]


def measure_waits() -> Figures:
    """Starvation, with its plot."""
    figures, waits = starvation.measure()
    plots.plot_waits(waits, BUILD_DIR / "bench-waits.png")
    return figures


def measure_disturbance() -> Figures:
    """Loads, reloads and prefixes, with their plot."""
    figures, gaps = disturbance.measure()
    plots.plot_gaps(gaps, BUILD_DIR / "bench-gaps.png")
    return figures


def measure_scale() -> Figures:
    """1 to 2,000 adapters, with the curve."""
    figures, curve = scale.measure()
    plots.plot_scale(curve, BUILD_DIR / "bench-scale.png")
    return figures


def measure_lora_steps() -> Figures:
    """Steps by number of adapters and by rank, with both curves."""
    figures, curves = lora_steps.measure()
    plots.plot_lora_steps(curves, BUILD_DIR / "bench-lora-steps.png")
    return figures


PARTS: Mapping[str, Callable[[], Figures]] = {
    "pool": pool_use.measure,
    "waits": measure_waits,
    "flood": flood.measure,
    "load": loading.measure,
    "bandwidth": bandwidth.measure,
    "steps": measure_lora_steps,
    "transformers": against_peers.measure_transformers,
    "peft": against_peers.measure_peft,
    "serve": serving.measure,
    "disturbance": measure_disturbance,
    "scale": measure_scale,
    # The control plane, without a model.
    "admission": control_plane.measure_admission,
    "relay": control_plane.measure_relay,
    "registry": registry_size.measure,
    "affinity": affinity.measure,
    "converge": convergence.measure,
    "fleet": fleet.measure,
}


def measure(part: str) -> Figures:
    """The figures of one part."""
    torch.set_num_threads(os.cpu_count() or 1)
    # What replicas say of themselves would drown the figures.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    figures = PARTS[part]()
    sys.stdout.flush()
    return figures
