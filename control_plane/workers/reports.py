"""Reports: what one stream's worker said of itself and was not taken in yet, in order.

A report of changes builds on the one before it. Invariant: what is taken is what the worker held and did
at one moment; when a report is missing, nothing counts until a whole one has come.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, replace

from control_plane.workers import convert
from control_plane.workers.holdings import HeldAdapter, Holdings
from control_plane.workers.types import StatusChange, WorkerStatus
from protos.sync.v1 import sync_pb2 as sync


@dataclass(frozen=True, slots=True)
class Observation:
    """What a worker holds and does now, and how that differs from before."""

    status: WorkerStatus
    change: StatusChange | None = None  # None: not at all, or `whole`
    whole: bool = False  # it may differ in anything


@dataclass(frozen=True, slots=True)
class _Heard:
    report: sync.ObservedState
    at_s: float  # Unix time


class Reports:
    """The reports of one stream."""

    def __init__(self) -> None:
        self.heard = asyncio.Event()
        self._waiting: list[_Heard] = []
        self._sequence: int | None = None  # of the last report that counts; None: a whole one must come

    def hear(self, report: sync.ObservedState, now_s: float) -> bool:
        """Take a report; False when one before it is missing."""
        self.heard.set()  # whatever it says, its worker lives
        if not report.changes_only:
            self._waiting.clear()  # it says all that they did
        elif self._sequence is None or report.sequence != self._sequence + 1:
            self._sequence = None
            return False
        self._sequence = report.sequence
        self._waiting.append(_Heard(report, now_s))
        return True

    def take(self, before: WorkerStatus) -> Observation:
        """Return what has become of a status since the last time."""
        self.heard.clear()
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return Observation(before)
        first, *later = waiting
        if not first.report.changes_only:
            now = convert.status_from_proto(first.report.status, first.at_s)
            if now != before:
                return Observation(_after(now, _changes(later)), whole=True)
            return _observed(now, _changes(later))
        return _observed(before, _changes(waiting))


def _changes(waiting: Iterable[_Heard]) -> list[StatusChange]:
    return [convert.change_from_proto(heard.report, heard.at_s) for heard in waiting]


def _after(status: WorkerStatus, changes: Iterable[StatusChange]) -> WorkerStatus:
    for change in changes:
        status = status.after(change)
    return status


def _observed(before: WorkerStatus, changes: list[StatusChange]) -> Observation:
    """Several changes as one."""
    changed: dict[str, HeldAdapter] = {}
    gone: dict[str, None] = {}
    for change in changes:
        for digest in change.gone:
            changed.pop(digest, None)
            gone[digest] = None
        for digest, held in change.status.held.items():
            gone.pop(digest, None)
            changed[digest] = held
    now = _after(before, changes)
    differs = changed or gone or replace(now, holdings=before.holdings) != before
    merged = StatusChange(replace(now, holdings=Holdings(changed.values())), tuple(gone))
    return Observation(now, merged if differs else None)
