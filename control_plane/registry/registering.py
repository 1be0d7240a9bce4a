"""Registering: new adapters and new weights, from their sources to what is stored.

Owns the states of a revision. RESOLVING is stored when a source takes longer than a moment, READY when
it was read and fits, FAILED with the reason when it does not. Invariants: only READY revisions are ever
served; an adapter whose weights never were READY is replaced by whoever registers its name next, or made
READY by a publish; what is RESOLVING has a reader, and one that dies has a successor (`takeover`); what
has FAILED is never read again by itself; new weights that fail leave READY ones as they are.
"""

import asyncio

from control_plane.errors import NameTaken, SourceUnavailable
from control_plane.registry import edits
from control_plane.registry.announcing import Announced, is_free
from control_plane.registry.bounds import check_new
from control_plane.registry.committing import Committing
from control_plane.registry.readings import ReadingLost, Readings, Terms
from control_plane.registry.sources import SOURCE_ERRORS, Sources
from control_plane.registry.types import Adapter, AdapterKey, NewAdapter, ReloadPolicy
from control_plane.resolvers.types import Resolved, ResolveRequest

# Most sources are read before anybody could ask: their state is not worth a commit and a watch event.
SLOW_S = 0.5
CUT_OFF = "the call that registered it ended before its source was read"


class Registering:
    """Reads sources and stores what they are."""

    def __init__(
        self, committing: Committing, sources: Sources, readings: Readings, *, slow_s: float = SLOW_S
    ) -> None:
        self._committing = committing
        self._sources = sources
        self._readings = readings
        self._slow_s = slow_s

    async def register(self, new: NewAdapter, *, keep_failure: bool = True) -> Adapter:
        """Read the source and store the adapter with revision 1; return the stored one on a repeat.

        Raises NameTaken (the name exists with other content), Refused, SourceUnavailable, NotFound (no
        such source), QuotaExceeded, InvalidArgument. With `keep_failure` the first, third and fourth of
        these stay visible as the adapter's FAILED revision.
        """
        check_new(new)
        terms = Terms(expected_digest=new.expected_digest, confined=new.confined, keep_failure=keep_failure)
        pending = edits.pending(new, await self._committing.now_s())
        announced: Announced | None = None
        reading = asyncio.ensure_future(self._sources.read(_request(new), new.expected_digest))
        try:
            if not (await asyncio.wait({reading}, timeout=self._slow_s))[0]:
                announced = await self._announce(pending, terms)
            resolved = await (self._readings.hold(announced.reading, reading) if announced else reading)
            return await self._commit(new, resolved, announced)
        except ReadingLost as lost:
            raise SourceUnavailable(f"adapter {lost}: another replica reads its source by now") from None
        except SOURCE_ERRORS as error:
            if keep_failure:
                await self._fail(pending, str(error))
            await _end(announced, str(error))
            raise
        except asyncio.CancelledError:
            await asyncio.shield(_end(announced, CUT_OFF))
            raise
        except Exception as error:  # over a limit, or an alias is taken: what was announced has come to this
            await _end(announced, str(error))
            raise
        finally:
            reading.cancel()  # of a caller that leaves; a no-op when it has ended

    async def publish(
        self,
        key: AdapterKey,
        source: str,
        expected_revision: int | None,
        expected_digest: str,
        reload_policy: ReloadPolicy | None,
        *,
        confined: bool,
        keep_current: bool,
    ) -> Adapter:
        """Read the source and make it the current revision, or with `keep_current` only keep it."""
        adapter = await self._committing.get(key)
        edits.check_expected(adapter, expected_revision)  # before a costly read, and again at the commit
        request = ResolveRequest(
            source=source or adapter.current.source,
            tenant=adapter.key.tenant,
            name=adapter.key.name,
            base_model=adapter.base_model,
            # Reading a source again that was allowed once is allowed; one that failed never was.
            confined=confined and (bool(source) or not adapter.current.ready),
        )
        try:
            resolved = await self._sources.read(request, expected_digest)
        except SOURCE_ERRORS as error:
            if not adapter.current.ready:
                await self._fail(adapter, str(error))
            raise

        def published(stored: Adapter, now_s: float) -> Adapter:
            return edits.published(
                stored, resolved, expected_revision, reload_policy, now_s, keep_current=keep_current
            )

        return await self._committing.change(key, published)

    async def _announce(self, pending: Adapter, terms: Terms) -> Announced | None:
        """Make it visible; None while another registration of the name is, and is read."""
        reading = await self._readings.begin(pending.key, terms)
        if reading is None:
            return None
        announced = Announced(self._committing, self._readings, pending, reading)
        await announced.store()
        return announced

    async def _commit(self, new: NewAdapter, resolved: Resolved, announced: Announced | None) -> Adapter:
        fresh = edits.created(new, resolved, await self._committing.now_s())
        stored = await self._committing.decide(new.key, lambda stored: _registered(stored, fresh))
        assert stored is not None, "registering never deletes"
        if announced is not None:
            await announced.end()
        return stored

    async def _fail(self, pending: Adapter, reason: str) -> None:
        """Store that this registration failed, unless something better is stored under its name."""
        failed = edits.failed(pending, reason)
        await self._committing.decide(
            pending.key, lambda stored: failed if is_free(stored, pending) else stored
        )


async def _end(announced: Announced | None, reason: str) -> None:
    if announced is not None:
        await announced.fail(reason)


def _registered(stored: Adapter | None, fresh: Adapter) -> Adapter:
    """What is stored when a source has been read: of several registrations, the first that is READY."""
    if stored is None or (stored.key == fresh.key and not stored.current.ready):
        return fresh
    if stored.key == fresh.key and edits.repeats(stored, fresh):
        return stored
    raise NameTaken(
        "adapter", str(fresh.key), "is being deleted" if stored.deleting else "exists with other content"
    )


def _request(new: NewAdapter) -> ResolveRequest:
    return ResolveRequest(
        source=new.source,
        tenant=new.key.tenant,
        name=new.key.name,
        base_model=new.base_model,
        confined=new.confined,
    )
