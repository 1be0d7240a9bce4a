"""Registry: what adapters exist, who may use them, and what each model name means.

Owns the rules of registering, publishing and naming. Knows nothing of workers, quotas of requests
or gRPC. Invariant: an adapter is stored only after its source was found, read and accepted, and
every change is one atomic commit over the state it was decided on.
"""

import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping
from contextlib import aclosing
from dataclasses import replace

from redis.asyncio import Redis

from control_plane.errors import InvalidArgument, NameTaken, NotFound, Refused, StoreUnavailable
from control_plane.registry import changes, edits, listing, names, traffic, traffic_edits
from control_plane.registry.changes import AdapterChange
from control_plane.registry.lookups import Lookups
from control_plane.registry.store import AdapterStore, CommitConflict, LimitsOf
from control_plane.registry.types import (
    Adapter,
    AdapterKey,
    Canary,
    NewAdapter,
    Page,
    PinTier,
    ReloadPolicy,
    Target,
    TrafficWeight,
)
from control_plane.resolvers.chain import ResolverChain
from control_plane.resolvers.types import Resolved, ResolveRequest
from control_plane.store import keys

# What one adapter may have: it is read and written as a whole, and every page of a listing has many.
MAX_ALIASES = 64
MAX_SHARED_WITH = 1000
MAX_LABELS = 64
MAX_LABEL_CHARACTERS = 256
MAX_SOURCE_CHARACTERS = 4096
MAX_BASE_MODEL_CHARACTERS = 512
MAX_ATTEMPTS = 32  # commits that lose a race; each lost one means that another won
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Registry:
    """The adapters of all tenants. Any number of replicas may share one Redis."""

    def __init__(
        self,
        redis: Redis,
        resolvers: ResolverChain,
        limits_of: LimitsOf | None = None,
        *,
        outage_s: float = 0.0,
        resolve_on_request: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._store = AdapterStore(redis, limits_of)
        self._lookups = Lookups(self._store.find, outage_s=outage_s, clock=clock)
        self._resolvers = resolvers
        self._resolve_on_request = resolve_on_request

    async def register(self, new: NewAdapter) -> Adapter:
        """Read the source and store the adapter with revision 1; return the stored one on a repeat.

        Raises NameTaken (the name exists with other content), Refused, SourceUnavailable,
        NotFound (no such source), QuotaExceeded, InvalidArgument.
        """
        _check_new(new)
        request = ResolveRequest(
            source=new.source,
            tenant=new.key.tenant,
            name=new.key.name,
            base_model=new.base_model,
            confined=new.confined,
        )
        resolved = await self._resolve(request, new.expected_digest)
        fresh = edits.created(new, resolved, await self._store.now_s())
        for _ in range(MAX_ATTEMPTS):
            stored = await self._store.find(new.key)
            if stored is not None:
                if stored.key == new.key and edits.repeats(stored, fresh):
                    return stored
                raise NameTaken("adapter", str(new.key), "exists with other content")
            try:
                return await self._commit(None, fresh)
            except CommitConflict:
                continue  # registered in between: compare with what is there now
        raise _contended(new.key)

    async def get(self, key: AdapterKey) -> Adapter:
        """Return the adapter that goes by this name or alias; raise NotFound."""
        adapter = await self._store.find(key)
        if adapter is None:
            raise NotFound("adapter", str(key))
        return adapter

    async def get_shared(self, tenant: str, key: AdapterKey) -> Adapter | None:
        """Return an adapter that its owner shares with a tenant; None when there is none to see."""
        adapter = await self._store.find(key)
        return adapter if adapter is not None and tenant in adapter.shared_with else None

    async def list(
        self,
        tenant: str | None,
        name_prefix: str = "",
        labels: Mapping[str, str] = {},
        page_size: int = 100,
        page_token: str = "",
    ) -> Page:
        """Return a page of adapters in order of `tenant/name`; without a tenant, of all tenants."""
        low, high = listing.bounds(tenant, name_prefix, page_token)
        index = keys.REGISTRY_INDEX
        if labels:
            index = await self._store.smallest([keys.registry_label(*label) for label in labels.items()])
        adapters = self._store.scan(low, high, index=index, chunk=listing.size_of(page_size) + 1)
        return await listing.page(adapters, name_prefix, labels, page_size)

    async def publish(
        self,
        key: AdapterKey,
        source: str = "",
        expected_revision: int | None = None,
        expected_digest: str = "",
        reload_policy: ReloadPolicy | None = None,
        *,
        confined: bool = False,
        keep_current: bool = False,
    ) -> Adapter:
        """Read the source (default: the current revision's, again) and make it the current revision.

        With `keep_current` the revision is only added, for `set_traffic`, a canary or by its number.
        The same weights from the same source change nothing. Raises StaleRevision unless
        `expected_revision`, if given, is current; else as `register`.
        """
        adapter = await self.get(key)
        edits.check_expected(adapter, expected_revision)  # before a costly read, and again at the commit
        request = ResolveRequest(
            source=source or adapter.current.source,
            tenant=adapter.key.tenant,
            name=adapter.key.name,
            base_model=adapter.base_model,
            confined=confined and bool(source),  # reading a source again that was allowed once is allowed
        )
        resolved = await self._resolve(request, expected_digest)

        def published(stored: Adapter, now_s: float) -> Adapter:
            return edits.published(
                stored, resolved, expected_revision, reload_policy, now_s, keep_current=keep_current
            )

        return await self._change(key, published)

    async def rollback(
        self, key: AdapterKey, revision: int = 0, expected_revision: int | None = None
    ) -> Adapter:
        """Make a kept revision current; 0 is the one before the current. Raises NotFound, StaleRevision."""
        return await self._change(
            key, lambda stored, now_s: edits.rolled_back(stored, revision, expected_revision, now_s)
        )

    async def set_traffic(self, key: AdapterKey, shares: tuple[TrafficWeight, ...]) -> Adapter:
        """Split traffic over kept revisions (none: all to the current one); a canary ends."""
        return await self._change(
            key, lambda stored, now_s: traffic_edits.with_traffic(stored, shares, now_s)
        )

    async def start_canary(self, key: AdapterKey, canary: Canary) -> Adapter:
        """Give a kept revision (0: the newest) its share of the traffic, on trial."""
        return await self._change(key, lambda stored, now_s: traffic_edits.with_canary(stored, canary, now_s))

    async def end_canary(self, key: AdapterKey, *, promote: bool) -> Adapter:
        """Make the canary current, or give it no traffic any more; raise NotFound when there is none."""
        return await self._change(
            key, lambda stored, now_s: traffic_edits.without_canary(stored, now_s, promote=promote)
        )

    async def roll_back_canary(self, key: AdapterKey, canary: Canary, reason: str) -> Adapter:
        """End this very canary because of what its requests were like; one that ended is left alone."""
        return await self._change(
            key, lambda stored, now_s: traffic_edits.canary_rolled_back(stored, canary, now_s, reason)
        )

    async def pin(self, key: AdapterKey, tier: PinTier) -> Adapter:
        """Keep the adapter in a tier of its workers; NONE takes the pin back."""
        return await self._change(key, lambda stored, _: edits.pinned(stored, tier))

    async def delete(self, key: AdapterKey) -> None:
        """Delete the adapter with its revisions, names and aliases; raise NotFound."""
        for _ in range(MAX_ATTEMPTS):
            try:
                await self._commit(await self.get(key), None)
            except CommitConflict:
                continue
            return
        raise _contended(key)

    async def resolve(
        self, tenant: str, model: str, base_models: Collection[str], routing_key: str = ""
    ) -> Target:
        """Return what a model name stands for: a base model or one revision of an adapter.

        Where traffic is split, the routing key chooses the revision: the same key, the same revision.
        Raises NotFound when it names nothing, and likewise when the tenant may not use it: whether
        another tenant has an adapter is not for the caller to learn. With `resolve_on_request` an unknown
        name of the tenant's own is first looked for by the resolvers; raises then as `register`.
        """
        if model in base_models:
            return Target(model)
        reference = names.parse_model(tenant, model)
        adapter = await self._lookups.find(reference.key) if reference else None
        if reference is not None and adapter is None and reference.key.tenant == tenant:
            adapter = await self._discover(reference.key, base_models)
        if reference is None or adapter is None or not _may_use(tenant, adapter):
            raise NotFound("model", model)
        try:
            revision = adapter.revision(reference.revision or traffic.choose(adapter, routing_key))
        except KeyError:
            raise NotFound("model", model, "names a revision that is not kept") from None
        return Target(_base_model(adapter, base_models), adapter, revision)

    def all(self) -> AsyncIterator[Adapter]:
        """Yield every adapter in order of `tenant/name`; those registered meanwhile may be missed."""
        return self._store.scan("-", "+")

    async def visible(self, tenant: str, after: str = "", chunk: int = 100) -> AsyncGenerator[Adapter, None]:
        """Yield the adapters that a tenant may use, in order of the name that it knows them by.

        Its own go by their names, those shared with it by `tenant/name`; `after` is such a name.
        Nothing else is read, `chunk` of each kind at a time.
        """
        own = self._store.scan(*listing.own_bounds(tenant, after), chunk=chunk)
        index, low = keys.registry_shared(tenant), f"({after}" if after else "-"
        shared = self._store.scan(low, "+", index=index, chunk=chunk)
        async with aclosing(_merged(own, shared, key=lambda adapter: adapter.known_as(tenant))) as adapters:
            async for adapter in adapters:
                yield adapter

    def changes(self, after: int) -> AsyncGenerator[AdapterChange, None]:
        """Yield changes after a resource version, for ever; see `registry.changes`.

        To follow the whole state: take `version()`, read `all()`, then changes after that version.
        What changed during the read comes twice, nothing is missed.
        """
        return changes.changes(self._redis, after)

    async def version(self) -> int:
        """Return the resource version of the last change; 0 before the first."""
        return await self._store.version()

    async def follow(self) -> None:
        """Follow changes, for ever, so that `resolve` need not read what has not changed.

        Raises StoreUnavailable and StaleRevision; `resolve` reads every time until it is called again.
        """
        await self._lookups.follow(await self.version(), self.changes)

    async def _discover(self, key: AdapterKey, base_models: Collection[str]) -> Adapter | None:
        """Register what a resolver has under this name; None when none has, which is remembered a while."""
        if not self._resolve_on_request:
            return None
        base_model = next(iter(base_models)) if len(base_models) == 1 else ""
        try:
            return await self.register(NewAdapter(key=key, base_model=base_model, confined=True))
        except NotFound:
            return None

    async def _commit(self, before: Adapter | None, after: Adapter | None) -> Adapter:
        committed = await self._store.commit(before, after)
        self._lookups.drop(committed.key)  # before the caller hears of it, not when the change comes round
        return committed

    async def _change(self, key: AdapterKey, edit: Callable[[Adapter, float], Adapter]) -> Adapter:
        """Commit an edit of the stored adapter at a time, made anew whenever another change came first."""
        now_s = await self._store.now_s()
        for _ in range(MAX_ATTEMPTS):
            stored = await self.get(key)
            changed = edit(stored, now_s)
            if changed == stored:
                return stored
            try:
                return await self._commit(stored, replace(changed, updated_s=now_s))
            except CommitConflict:
                continue
        raise _contended(key)

    async def _resolve(self, request: ResolveRequest, expected_digest: str) -> Resolved:
        names.check_length("source", request.source, MAX_SOURCE_CHARACTERS)
        if expected_digest and not _DIGEST.fullmatch(expected_digest):
            raise InvalidArgument("expected_digest", expected_digest, "must be 'sha256:' and 64 hex digits")
        resolved = await self._resolvers.resolve(request)
        if expected_digest not in ("", resolved.digest):
            raise Refused(
                f"{resolved.uri} has the digest {resolved.digest}, not the expected {expected_digest}"
            )
        return resolved


async def _merged(
    one: AsyncIterator[Adapter], other: AsyncIterator[Adapter], *, key: Callable[[Adapter], str]
) -> AsyncGenerator[Adapter, None]:
    """Yield both, each in order, in one order."""
    first, second = await anext(one, None), await anext(other, None)
    while first is not None or second is not None:
        if second is None or (first is not None and key(first) < key(second)):
            assert first is not None
            yield first
            first = await anext(one, None)
        else:
            yield second
            second = await anext(other, None)


def _check_new(new: NewAdapter) -> None:
    names.check_key(new.key)
    names.check_size("aliases", len(new.aliases), MAX_ALIASES)
    names.check_size("shared_with", len(new.shared_with), MAX_SHARED_WITH)
    names.check_size("labels", len(new.labels), MAX_LABELS)
    for label, value in new.labels.items():
        names.check_length("labels", label, MAX_LABEL_CHARACTERS)
        names.check_length(f"labels[{label!r}]", value, MAX_LABEL_CHARACTERS)
    names.check_length("base_model", new.base_model, MAX_BASE_MODEL_CHARACTERS)
    for alias in new.aliases:
        names.check_name("aliases", alias)
    for tenant in new.shared_with:
        names.check_name("shared_with", tenant)


def _may_use(tenant: str, adapter: Adapter) -> bool:
    return tenant == adapter.key.tenant or tenant in adapter.shared_with


def _base_model(adapter: Adapter, base_models: Collection[str]) -> str:
    """Return the adapter's base model; one registered without it belongs to the only one served."""
    if adapter.base_model or not base_models:
        return adapter.base_model
    if len(base_models) > 1:
        raise InvalidArgument(
            "base_model",
            "",
            f"must be named for adapter {str(adapter.key)!r}: {sorted(base_models)} are served",
        )
    return next(iter(base_models))


def _contended(key: AdapterKey) -> StoreUnavailable:
    return StoreUnavailable(f"adapter {str(key)!r} changed {MAX_ATTEMPTS} times while it was being changed")
