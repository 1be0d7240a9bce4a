"""Takeover: registrations whose readers died are read by another replica, so RESOLVING always ends.

Runs on every replica; which of them takes a reading up is decided by the lease in `readings`. Invariant:
a source that kills whoever reads it is read MAX_READERS times, not by one replica after another for ever.
"""

import asyncio
import random

import structlog

from control_plane.errors import NameTaken, QuotaExceeded, StoreUnavailable
from control_plane.registry import edits
from control_plane.registry.announcing import Announced
from control_plane.registry.committing import Committing
from control_plane.registry.readings import Reading, ReadingLost, Readings
from control_plane.registry.sources import SOURCE_ERRORS, Sources
from control_plane.registry.types import Adapter, RevisionState
from control_plane.resolvers.types import ResolveRequest

MAX_AT_ONCE = 4  # readings of the dead, beside those of callers that wait
MAX_READERS = 3
_log = structlog.get_logger(__name__)


class Takeover:
    """This replica's part in what others left behind."""

    def __init__(
        self, committing: Committing, sources: Sources, readings: Readings, *, every_s: float
    ) -> None:
        self._committing = committing
        self._sources = sources
        self._readings = readings
        self._every_s = every_s
        self._free = asyncio.Semaphore(MAX_AT_ONCE)

    async def run(self) -> None:
        """Look for readings without readers until cancelled; raise StoreUnavailable."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._free.acquire()
                reading = await self._readings.take()
                if reading is not None:
                    tasks.create_task(self._finish(reading))
                    continue
                self._free.release()
                # Jitter, so that replicas do not all ask at once.
                await asyncio.sleep(self._every_s * random.uniform(0.5, 1.0))  # noqa: S311

    async def _finish(self, reading: Reading) -> None:
        try:
            _log.info("registration taken up", adapter=str(reading.key), readers=reading.terms.attempts)
            await self._read(reading)
        except (ReadingLost, StoreUnavailable) as error:
            _log.warning("registration left to others", adapter=str(reading.key), reason=str(error))
        except Exception:  # a resolver's bug: the next reader meets it too, and after the last it is FAILED
            _log.exception("registration not read", adapter=str(reading.key))
        finally:
            self._free.release()

    async def _read(self, reading: Reading) -> None:
        stored = await self._committing.find(reading.key)
        if stored is None or stored.current.state is not RevisionState.RESOLVING:
            await self._readings.end(reading)  # its reader died between its last two writes
            return
        announced = Announced(self._committing, self._readings, stored, reading)
        if reading.terms.attempts > MAX_READERS:
            await announced.fail(
                f"each of {MAX_READERS} replicas that read its source ended before it was read"
            )
            return
        source = self._sources.read(_request(stored, reading), reading.terms.expected_digest)
        try:
            resolved = await self._readings.hold(reading, source)
            now_s = await self._committing.now_s()
            await announced.replace(lambda pending: edits.read(pending, resolved, now_s))
        except (*SOURCE_ERRORS, NameTaken, QuotaExceeded) as error:
            await announced.fail(str(error))


def _request(pending: Adapter, reading: Reading) -> ResolveRequest:
    return ResolveRequest(
        source=pending.current.source,
        tenant=pending.key.tenant,
        name=pending.key.name,
        base_model=pending.base_model,
        confined=reading.terms.confined,
    )
