"""Where the time of our steps goes, by part: what `make bench` prints beside a figure that missed its goal.

A stopwatch is put around the verbs of each part while a piece of work runs; on the CPU they return when
they are done, so wall time is theirs. A part's time leaves out the parts it calls, but for the head's.
Whole decoder layers are one call: the kernels' own clock tells their phases apart.
The rest is Python (scheduler, module calls) and what the definition computes by itself: embedding,
rotary angles, residuals.
"""

import ctypes
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import data_plane.engine.runner as runner
from data_plane.engine.sampler import Sampler
from data_plane.models.attention import PagedLayer
from data_plane.models.packed_head import PackedHead
from data_plane.models.pointwise import FusedGate, FusedNorm
from data_plane.models.projection import FusedProjection, ProjectionLora
from kernels.cpu.native import PHASES, NativeKernels

REST = "the rest"
# Who has the verb, the verb, and the part it is of.
PARTS: tuple[tuple[Any, str, str], ...] = (
    (
        NativeKernels,
        "layers",
        "layers' set-up",
    ),  # what the phases leave: units are cut, threads begin and end
    (FusedProjection, "output", "linears"),
    (ProjectionLora, "add", "LoRA"),
    (PagedLayer, "attend", "attention"),
    (FusedNorm, "forward", "norms and gates"),
    (FusedGate, "forward", "norms and gates"),
    (PackedHead, "forward", "head"),
    (Sampler, "sample", "sampler"),
    (runner, "step_inputs", "inputs"),
)
WHOLE = frozenset({"head"})  # parts that own what they call: no adapter of it is told apart


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Seconds by part; they add up to the whole."""

    parts_s: dict[str, float]

    @property
    def total_s(self) -> float:
        """Of the work."""
        return sum(self.parts_s.values())

    def describe(self, title: str) -> None:
        """Print one line, largest part first."""
        parts = sorted(self.parts_s.items(), key=lambda part: -part[1])
        shares = ", ".join(f"{name} {1000 * s:.1f} ({s / self.total_s:.0%})" for name, s in parts)
        print(f"    {title}: {1000 * self.total_s:.1f} ms = {shares}")


class Stopwatch:
    """Own time of each part: entering another stops the one before."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._spent_s: dict[str, float] = {}
        self._running = [REST]
        self._since_s = clock()

    def around(self, part: str, verb: Callable[..., Any]) -> Callable[..., Any]:
        """The verb, its time counted as the part's."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._running[-1] in WHOLE:
                return verb(*args, **kwargs)
            self._switch()
            self._running.append(part)
            try:
                return verb(*args, **kwargs)
            finally:
                self._switch()
                self._running.pop()

        return timed

    def move(self, spent_s: float, part: str) -> None:
        """So much of what the running part takes is another's."""
        for name, change_s in ((self._running[-1], -spent_s), (part, spent_s)):
            self._spent_s[name] = self._spent_s.get(name, 0.0) + change_s

    def stop(self, num_times: int) -> Breakdown:
        """What every part took, on average of so many times."""
        self._switch()
        return Breakdown({part: spent / num_times for part, spent in self._spent_s.items()})

    def _switch(self) -> None:
        now_s = self._clock()
        part = self._running[-1]
        self._spent_s[part] = self._spent_s.get(part, 0.0) + now_s - self._since_s
        self._since_s = now_s


def break_down(work: Callable[[], object], num_times: int = 1) -> Breakdown:
    """Do the work so often, once more before to warm up; the mean of one time."""
    work()
    with ExitStack() as patches:
        stopwatch = Stopwatch()
        patches.enter_context(mock.patch.object(NativeKernels, "layers", _by_phase(stopwatch)))
        for owner, verb, part in PARTS:
            timed = stopwatch.around(part, getattr(owner, verb))
            patches.enter_context(mock.patch.object(owner, verb, timed))
        for _ in range(num_times):
            work()
        return stopwatch.stop(num_times)


def _by_phase(stopwatch: Stopwatch) -> Callable[..., None]:
    """`NativeKernels.layers`, its time counted as its phases'."""
    layers = NativeKernels.layers

    def timed(kernels: NativeKernels, calls: "ctypes.Array[ctypes.c_void_p]") -> None:
        spent_s = (ctypes.c_double * len(PHASES))()
        layers(kernels, calls, spent_s)
        for phase, phase_s in zip(PHASES, spent_s, strict=True):
            stopwatch.move(phase_s, phase)

    return timed
