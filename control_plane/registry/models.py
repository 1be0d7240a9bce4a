"""Models: what a model name of a request stands for, and which ones a tenant may use.

Knows the base models only as names that it is given. Invariant: a tenant never learns whether
another has an adapter that is not shared with it, and is never given one that is not READY.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import aclosing

from control_plane.errors import InvalidArgument, NotFound, Refused, SourceUnavailable
from control_plane.registry import listing, names, traffic
from control_plane.registry.lookups import Lookups
from control_plane.registry.store import AdapterStore
from control_plane.registry.types import Adapter, AdapterKey, NewAdapter, Revision, RevisionState, Target
from control_plane.store import keys

# Registers what a resolver has under a name; None: names are not looked for.
Discover = Callable[[NewAdapter], Awaitable[Adapter]]


class Models:
    """Model names of all tenants."""

    def __init__(self, store: AdapterStore, lookups: Lookups, discover: Discover | None) -> None:
        self._store = store
        self._lookups = lookups
        self._discover = discover

    async def resolve(
        self, tenant: str, model: str, base_models: Collection[str], routing_key: str
    ) -> Target:
        """Return what a model name stands for: a base model or one revision of an adapter."""
        if model in base_models:
            return Target(model)
        reference = names.parse_model(tenant, model)
        adapter = await self._find(reference.key) if reference else None
        if reference is not None and adapter is None and reference.key.tenant == tenant:
            adapter = await self._look_for(reference.key, base_models)
        if reference is None or adapter is None or not _may_use(tenant, adapter):
            raise NotFound("model", model)
        try:
            revision = adapter.revision(reference.revision or traffic.choose(adapter, routing_key))
        except KeyError:
            raise NotFound("model", model, "names a revision that is not kept") from None
        _check_ready(model, revision)
        return Target(_base_model(adapter, base_models), adapter, revision)

    async def visible(self, tenant: str, after: str, chunk: int) -> AsyncGenerator[Adapter, None]:
        """Yield the adapters that a tenant may use, in order of the name that it knows them by."""
        own = self._store.scan(*listing.own_bounds(tenant, after), chunk=chunk)
        index, low = keys.registry_shared(tenant), f"({after}" if after else "-"
        shared = self._store.scan(low, "+", index=index, chunk=chunk)
        merged = listing.merged(own, shared, key=lambda adapter: adapter.known_as(tenant))
        async with aclosing(merged) as adapters:
            async for adapter in adapters:
                if adapter.current.ready and not adapter.deleting:
                    yield adapter

    async def _find(self, key: AdapterKey) -> Adapter | None:
        adapter = await self._lookups.find(key)
        return None if adapter is None or adapter.deleting else adapter

    async def _look_for(self, key: AdapterKey, base_models: Collection[str]) -> Adapter | None:
        """Register what a resolver has under this name; None when none has, which is remembered a while."""
        if self._discover is None:
            return None
        base_model = next(iter(base_models)) if len(base_models) == 1 else ""
        try:
            return await self._discover(NewAdapter(key=key, base_model=base_model, confined=True))
        except NotFound:
            return None


def _check_ready(model: str, revision: Revision) -> None:
    if revision.state is RevisionState.FAILED:
        raise Refused(f"model {model!r} failed to register: {revision.failure}; publish it again")
    if revision.state is RevisionState.RESOLVING:
        raise SourceUnavailable(f"model {model!r} is being registered: its source is still read")


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
