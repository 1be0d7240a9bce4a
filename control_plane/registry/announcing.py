"""Announcing: a registration that is visible as RESOLVING while its source is read.

Owns what is stored of it and its reading, from the moment that reading takes long to its end. Knows no
sources. Invariants: what is RESOLVING has a reading, begun before it and ended after it; its end is
stored only while it is still the same registration.
"""

from collections.abc import Callable

from control_plane.registry import edits
from control_plane.registry.committing import Committing
from control_plane.registry.readings import Reading, Readings
from control_plane.registry.types import Adapter, RevisionState


class Announced:
    """One registration that is read here, announced by this replica or by one that is gone."""

    def __init__(
        self, committing: Committing, readings: Readings, pending: Adapter, reading: Reading
    ) -> None:
        self._committing = committing
        self._readings = readings
        self._pending = pending
        self.reading = reading

    async def store(self) -> None:
        """Store it, unless its name has something that is READY."""
        await self._committing.decide(
            self._pending.key,
            lambda stored: self._pending if _was_never_ready(stored, self._pending) else stored,
        )

    async def fail(self, reason: str) -> None:
        """Store why it failed; where its failure is nobody's to keep, remove it."""
        if self.reading.terms.keep_failure:
            await self.replace(lambda stored: edits.failed(stored, reason))
        else:
            await self.replace(lambda stored: None)

    async def replace(self, edit: Callable[[Adapter], Adapter | None]) -> None:
        """Store what has become of it, unless that was somebody else's to say."""
        await self._committing.decide(
            self._pending.key,
            lambda stored: (
                edit(stored) if stored is not None and edits.declares(stored, self._pending) else stored
            ),
        )
        await self.end()

    async def end(self) -> None:
        """What has become of it is stored: it needs no reader any more."""
        await self._readings.end(self.reading)


def is_free(stored: Adapter | None, pending: Adapter) -> bool:
    """Whether a name has nothing that was ever READY, and is nobody else's to say what becomes of."""
    if stored is None or edits.declares(stored, pending):
        return True
    return stored.key == pending.key and stored.current.state is RevisionState.FAILED


def _was_never_ready(stored: Adapter | None, pending: Adapter) -> bool:
    # One that still is RESOLVING has lost its reader: this registration holds the name's reading now.
    return stored is None or (stored.key == pending.key and not stored.current.ready)
