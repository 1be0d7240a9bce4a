"""Registry: what adapters exist, who may use them, and what each model name means.

The one face of this package to the rest: reading, changing and naming, each kept by its own module.
Knows nothing of workers, quotas of requests or gRPC. Invariant: what can be served was found, read and
accepted, and every change is one atomic commit over the state it was decided on.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from functools import partial

from redis.asyncio import Redis

from control_plane.errors import NotFound
from control_plane.registry import changes, edits, listing, names, traffic_edits
from control_plane.registry.bounds import MAX_SHARED_WITH
from control_plane.registry.changes import AdapterChange
from control_plane.registry.committing import Committing
from control_plane.registry.lookups import Lookups
from control_plane.registry.models import Models
from control_plane.registry.readings import Readings
from control_plane.registry.registering import SLOW_S, Registering
from control_plane.registry.sources import Sources
from control_plane.registry.store import AdapterStore, LimitsOf
from control_plane.registry.takeover import Takeover
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
from control_plane.registry.watching import Recent, Watched, Watching
from control_plane.resolvers.chain import ResolverChain
from control_plane.store import keys

READER_LEASE_S = 3.0  # a silent reader of a source is replaced after this


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
        slow_s: float = SLOW_S,
        reader_lease_s: float = READER_LEASE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._store = AdapterStore(redis, limits_of)
        self._lookups = Lookups(self._store.find, outage_s=outage_s, clock=clock)
        self._committing = Committing(self._store, self._lookups)
        sources, readings = Sources(resolvers), Readings(redis, lease_s=reader_lease_s, clock=time.monotonic)
        self._registering = Registering(self._committing, sources, readings, slow_s=slow_s)
        self._takeover = Takeover(self._committing, sources, readings, every_s=reader_lease_s / 2)
        # A name that somebody asked for is no registration of theirs: its failure is the answer, and all.
        discover = partial(self._registering.register, keep_failure=False) if resolve_on_request else None
        self._models = Models(self._store, self._lookups, discover)
        self._recent = Recent()
        self._watching = Watching(redis, self._store, self._recent)

    async def register(self, new: NewAdapter) -> Adapter:
        """Read the source and store the adapter with revision 1; return the stored one on a repeat.

        Raises NameTaken (the name exists with other content), Refused, SourceUnavailable,
        NotFound (no such source), QuotaExceeded, InvalidArgument. What its source does wrong stays
        visible as a FAILED revision, until it is registered or published again.
        """
        return await self._registering.register(new)

    async def get(self, key: AdapterKey) -> Adapter:
        """Return the adapter that goes by this name or alias; raise NotFound."""
        return await self._committing.get(key)

    async def find(self, key: AdapterKey) -> Adapter:
        """As `get`, but return one that is being deleted too."""
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
        return await self._registering.publish(
            key,
            source,
            expected_revision,
            expected_digest,
            reload_policy,
            confined=confined,
            keep_current=keep_current,
        )

    async def rollback(
        self, key: AdapterKey, revision: int = 0, expected_revision: int | None = None
    ) -> Adapter:
        """Make a kept revision current; 0 is the one before the current. Raises NotFound, StaleRevision."""
        return await self._committing.change(
            key, lambda stored, now_s: edits.rolled_back(stored, revision, expected_revision, now_s)
        )

    async def set_traffic(self, key: AdapterKey, shares: tuple[TrafficWeight, ...]) -> Adapter:
        """Split traffic over kept revisions (none: all to the current one); a canary ends."""
        return await self._committing.change(
            key, lambda stored, now_s: traffic_edits.with_traffic(stored, shares, now_s)
        )

    async def start_canary(self, key: AdapterKey, canary: Canary) -> Adapter:
        """Give a kept revision (0: the newest) its share of the traffic, on trial."""
        return await self._committing.change(
            key, lambda stored, now_s: traffic_edits.with_canary(stored, canary, now_s)
        )

    async def end_canary(self, key: AdapterKey, *, promote: bool) -> Adapter:
        """Make the canary current, or give it no traffic any more; raise NotFound when there is none."""
        return await self._committing.change(
            key, lambda stored, now_s: traffic_edits.without_canary(stored, now_s, promote=promote)
        )

    async def roll_back_canary(self, key: AdapterKey, canary: Canary, reason: str) -> Adapter:
        """End this very canary because of what its requests were like; one that ended is left alone."""
        return await self._committing.change(
            key, lambda stored, now_s: traffic_edits.canary_rolled_back(stored, canary, now_s, reason)
        )

    async def pin(self, key: AdapterKey, tier: PinTier) -> Adapter:
        """Keep the adapter in a tier of its workers; NONE takes the pin back."""
        return await self._committing.change(key, lambda stored, _: edits.pinned(stored, tier))

    async def share(self, key: AdapterKey, tenants: Sequence[str]) -> Adapter:
        """Let these tenants use the adapter too. Raises NotFound, InvalidArgument."""
        for tenant in tenants:
            names.check_name("with_tenants", tenant)

        def shared(stored: Adapter, now_s: float) -> Adapter:
            after = edits.shared(stored, tenants)
            names.check_size("with_tenants", len(after.shared_with), MAX_SHARED_WITH)
            return after

        return await self._committing.change(key, shared)

    async def unshare(self, key: AdapterKey, tenants: Sequence[str]) -> Adapter:
        """Let these tenants use it no more, from their next request on. Raises NotFound."""
        return await self._committing.change(key, lambda stored, _: edits.unshared(stored, tenants))

    async def delete(
        self, key: AdapterKey, is_held: Callable[[AdapterKey], bool] = lambda _: False
    ) -> Adapter | None:
        """Delete the adapter with its revisions, names and aliases; raise NotFound.

        One that is held somewhere is only marked: no request can use it and its aliases are free, but its
        name and its bytes are not before `remove`. Returns it as it is then; None when it is gone.
        """
        return await self._committing.delete(key, is_held)

    def deleting(self) -> AsyncIterator[Adapter]:
        """Yield what is marked as deleted and not yet removed."""
        return self._store.scan("-", "+", index=keys.REGISTRY_DELETING)

    async def remove(self, key: AdapterKey) -> None:
        """Remove what is marked as deleted; do nothing to anything else."""
        await self._committing.decide(
            key, lambda stored: None if stored and stored.deleting and stored.key == key else stored
        )

    async def resolve(
        self, tenant: str, model: str, base_models: Collection[str], routing_key: str = ""
    ) -> Target:
        """Return what a model name stands for: a base model or one revision of an adapter.

        Where traffic is split, the routing key chooses the revision: the same key, the same revision.
        Raises NotFound when it names nothing, and likewise when the tenant may not use it: whether
        another tenant has an adapter is not for the caller to learn. With `resolve_on_request` an unknown
        name of the tenant's own is first looked for by the resolvers; raises then as `register`. Raises
        Refused for a FAILED revision, SourceUnavailable for one that is still RESOLVING.
        """
        return await self._models.resolve(tenant, model, base_models, routing_key)

    def all(self) -> AsyncIterator[Adapter]:
        """Yield every adapter in order of `tenant/name`; those registered meanwhile may be missed."""
        return self._store.scan("-", "+")

    def visible(self, tenant: str, after: str = "", chunk: int = 100) -> AsyncGenerator[Adapter, None]:
        """Yield the adapters that a tenant may use, in order of the name that it knows them by.

        Its own go by their names, those shared with it by `tenant/name`; `after` is such a name.
        Nothing else is read, `chunk` of each kind at a time.
        """
        return self._models.visible(tenant, after, chunk)

    def changes(self, after: int) -> AsyncGenerator[AdapterChange, None]:
        """Yield changes after a resource version, for ever; see `registry.changes`.

        To follow the whole state: take `version()`, read `all()`, then changes after that version.
        What changed during the read comes twice, nothing is missed.
        """
        return changes.changes(self._redis, after)

    def watch(self, tenant: str | None, after: int | None) -> AsyncGenerator[Watched, None]:
        """Yield changes of a tenant's adapters (None: of all), for ever; any number may watch.

        Without a version the tenant's present adapters come first. Raises StaleRevision when changes after
        `after` are kept no longer, StoreUnavailable when Redis gives no answer.
        """
        return self._watching.watch(tenant, after)

    async def version(self) -> int:
        """Return the resource version of the last change; 0 before the first."""
        return await self._store.version()

    async def take_over(self) -> None:
        """Read, for ever, what replicas that died were reading. Raises StoreUnavailable."""
        await self._takeover.run()

    async def follow(self) -> None:
        """Follow changes, for ever, so that neither `resolve` nor watches need read what has not changed.

        Raises StoreUnavailable and StaleRevision; `resolve` reads every time until it is called again.
        """
        await self._lookups.follow(
            await self.version(), lambda after: self._recent.hear(self.changes(after), after)
        )
