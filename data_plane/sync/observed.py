"""Observed: the reports of one stream to the control plane, each what differs from the one before.

Every value of the engine's status is immutable, so what is the very same object is the same state. The
first report of a stream is whole, and so is every one to a control plane that takes no changes. With 2,000
adapters a report of one change takes 0.15 ms of the event loop and 200 bytes; a whole one 4 ms and 300 KB.
Event-loop thread only.
"""

from collections.abc import Callable, Sequence

from data_plane.engine.events import EngineStatus, HeldAdapter
from data_plane.sync import convert
from protos.fleet.v1 import fleet_pb2 as fleet
from protos.sync.v1 import sync_pb2 as sync


class Observed:
    """What one stream was told, and what is to be told next."""

    def __init__(
        self, held_to_proto: Callable[[HeldAdapter, float], fleet.HeldAdapter] = convert.held_to_proto
    ) -> None:
        self._held_to_proto = held_to_proto
        self._given: Sequence[HeldAdapter] = ()
        self._told: dict[str, HeldAdapter] = {}  # by digest
        self._sequence = 0
        self._changes_only = False  # what was told is known there
        self.takes_changes = False  # as the control plane's lease says

    def tell_whole(self) -> None:
        """The next report is whole: the control plane misses one."""
        self._changes_only = False

    def report(self, status: EngineStatus, generation: int) -> sync.WorkerMessage:
        """The next report, of a newer status. Its adapters are in no particular order."""
        changes_only = self._changes_only and self.takes_changes
        if not changes_only:
            self._given, self._told = (), {}
        changed, gone = self._differences(status.adapters)
        self._sequence += 1
        self._changes_only = True
        observed = sync.ObservedState(
            generation=generation,
            status=fleet.WorkerStatus(adapters=[self._held_to_proto(one, status.taken_s) for one in changed]),
            sequence=self._sequence,
            changes_only=changes_only,
            gone_digests=gone,
        )
        convert.set_load(observed.status, status)
        return sync.WorkerMessage(observed=observed)

    def _differences(self, held: Sequence[HeldAdapter]) -> tuple[list[HeldAdapter], list[str]]:
        if held is self._given:
            return [], []
        told, self._given = self._told, held
        changed = [one for one in held if told.get(one.revision.digest) is not one]
        told |= {one.revision.digest: one for one in changed}
        gone: list[str] = []
        if len(told) > len(held):
            gone = list(told.keys() - {one.revision.digest for one in held})
            for digest in gone:
                del told[digest]
        return changed, gone
