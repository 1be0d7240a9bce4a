"""Registering: new adapters and new weights, from their sources to what is stored.

Owns the states of a revision. RESOLVING is stored when a source takes longer than a moment, READY when
it was read and fits, FAILED with the reason when it does not. Invariants: only READY revisions are ever
served; an adapter whose weights never were READY is replaced by whoever registers its name next, or made
READY by a publish, and is never read again by itself; new weights that fail leave READY ones as they are.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable

from control_plane.errors import InvalidArgument, NameTaken, NotFound, Refused, SourceUnavailable
from control_plane.registry import edits, names
from control_plane.registry.committing import Committing
from control_plane.registry.types import Adapter, AdapterKey, NewAdapter, ReloadPolicy
from control_plane.resolvers.chain import ResolverChain
from control_plane.resolvers.types import Resolved, ResolveRequest

# What one adapter may have: it is read and written as a whole, and every page of a listing has many.
MAX_ALIASES = 64
MAX_SHARED_WITH = 1000
MAX_LABELS = 64
MAX_LABEL_CHARACTERS = 256
MAX_SOURCE_CHARACTERS = 4096
MAX_BASE_MODEL_CHARACTERS = 512
# Most sources are read before anybody could ask: their state is not worth a commit and a watch event.
SLOW_S = 0.5
CUT_OFF = "the call that registered it ended before its source was read"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# What sources do wrong; anything else is the call's fault, and leaves nothing.
_SOURCE_ERRORS = (Refused, NotFound, SourceUnavailable)


class Registering:
    """Reads sources and stores what they are."""

    def __init__(self, committing: Committing, resolvers: ResolverChain, *, slow_s: float = SLOW_S) -> None:
        self._committing = committing
        self._resolvers = resolvers
        self._slow_s = slow_s

    async def register(self, new: NewAdapter, *, keep_failure: bool = True) -> Adapter:
        """Read the source and store the adapter with revision 1; return the stored one on a repeat.

        Raises NameTaken (the name exists with other content), Refused, SourceUnavailable, NotFound (no
        such source), QuotaExceeded, InvalidArgument. With `keep_failure` the first, third and fourth of
        these stay visible as the adapter's FAILED revision.
        """
        _check_new(new)
        pending = edits.pending(new, await self._committing.now_s())
        try:
            resolved = await self._read(_request(new), new.expected_digest, lambda: self._announce(pending))
        except _SOURCE_ERRORS as error:
            if keep_failure:
                await self._fail(pending, str(error))
            raise
        except asyncio.CancelledError:
            await asyncio.shield(self._end(pending, CUT_OFF))
            raise
        fresh = edits.created(new, resolved, await self._committing.now_s())
        try:
            stored = await self._committing.decide(new.key, lambda stored: _registered(stored, fresh))
        except Exception as error:  # over a limit, or an alias is taken: what was announced has come to this
            await self._end(pending, str(error))
            raise
        assert stored is not None, "registering never deletes"
        return stored

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
            resolved = await self._read(request, expected_digest)
        except _SOURCE_ERRORS as error:
            if not adapter.current.ready:
                await self._fail(adapter, str(error))
            raise

        def published(stored: Adapter, now_s: float) -> Adapter:
            return edits.published(
                stored, resolved, expected_revision, reload_policy, now_s, keep_current=keep_current
            )

        return await self._committing.change(key, published)

    async def _read(
        self,
        request: ResolveRequest,
        expected_digest: str,
        announce: Callable[[], Awaitable[None]] | None = None,
    ) -> Resolved:
        """Resolve; say so first when it takes longer than a moment."""
        names.check_length("source", request.source, MAX_SOURCE_CHARACTERS)
        if expected_digest and not _DIGEST.fullmatch(expected_digest):
            raise InvalidArgument("expected_digest", expected_digest, "must be 'sha256:' and 64 hex digits")
        reading = asyncio.ensure_future(self._resolvers.resolve(request))
        try:
            if announce is not None and not (await asyncio.wait({reading}, timeout=self._slow_s))[0]:
                await announce()
            resolved = await reading
        finally:
            reading.cancel()  # of a caller that leaves; a no-op when it has ended
        if expected_digest not in ("", resolved.digest):
            raise Refused(
                f"{resolved.uri} has the digest {resolved.digest}, not the expected {expected_digest}"
            )
        return resolved

    async def _announce(self, pending: Adapter) -> None:
        await self._committing.decide(
            pending.key, lambda stored: pending if _is_free(stored, pending) else stored
        )

    async def _fail(self, pending: Adapter, reason: str) -> None:
        """Store that this registration failed, unless something better is stored under its name."""
        failed = edits.failed(pending, reason)
        await self._committing.decide(
            pending.key, lambda stored: failed if _is_free(stored, pending) else stored
        )

    async def _end(self, pending: Adapter, reason: str) -> None:
        """As `_fail`, but only of a registration that was announced."""
        failed = edits.failed(pending, reason)
        await self._committing.decide(
            pending.key,
            lambda stored: failed if stored is not None and edits.declares(stored, pending) else stored,
        )


def _is_free(stored: Adapter | None, pending: Adapter) -> bool:
    """Whether a name has nothing that was ever READY."""
    return stored is None or (stored.key == pending.key and not stored.current.ready)


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


def _check_new(new: NewAdapter) -> None:
    names.check_key(new.key)
    names.check_size("aliases", len(new.aliases), MAX_ALIASES)
    names.check_size("labels", len(new.labels), MAX_LABELS)
    for label, value in new.labels.items():
        names.check_length("labels", label, MAX_LABEL_CHARACTERS)
        names.check_length(f"labels[{label!r}]", value, MAX_LABEL_CHARACTERS)
    names.check_length("base_model", new.base_model, MAX_BASE_MODEL_CHARACTERS)
    for alias in new.aliases:
        names.check_name("aliases", alias)
    names.check_size("shared_with", len(new.shared_with), MAX_SHARED_WITH)
    for tenant in new.shared_with:
        names.check_name("shared_with", tenant)
