"""The script of commits against a small model in Python, over random histories of two replicas.

What is checked at the end is every key that the script writes: adapters, names, all indexes, what each
tenant holds, and the stream of changes.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from control_plane.errors import NameTaken, QuotaExceeded
from control_plane.quotas.types import Limits
from control_plane.registry.store import AdapterStore, CommitConflict
from control_plane.registry.types import Adapter, AdapterKey
from control_plane.store import keys
from tests.control_plane.placement.examples import revision

TENANTS, NAMES = ("t0", "t1"), ("x", "y", "z")
LIMITS = Limits(registered_adapters=2, adapter_bytes=100)


@dataclass
class Model:
    """Adapters that exist, by key."""

    adapters: dict[AdapterKey, Adapter] = field(default_factory=dict)
    num_changes: int = 0

    def names(self) -> dict[str, AdapterKey]:
        return {
            f"{key.tenant}/{name}": key
            for key, adapter in self.adapters.items()
            for name in (key.name, *adapter.aliases)
        }

    def held(self, tenant: str) -> tuple[int, int]:
        own = [adapter for key, adapter in self.adapters.items() if key.tenant == tenant]
        return len(own), sum(one.size_bytes for adapter in own for one in adapter.revisions)

    def index(self, of: Any) -> list[str]:
        return sorted(str(key) for key, adapter in self.adapters.items() if of(adapter))

    def refusal(self, before: Adapter | None, after: Adapter | None) -> str:
        """What refuses a change from a state to another; '' when nothing does."""
        subject = after or before
        assert subject is not None
        if self.adapters.get(subject.key) != before:
            return "conflict"
        if after is None:
            return ""
        taken = self.names()
        tenant = after.key.tenant
        if any(
            taken.get(f"{tenant}/{name}", after.key) != after.key for name in (after.key.name, *after.aliases)
        ):
            return "taken"
        adapters, num_bytes = self.held(tenant)
        gained = _bytes(after) - _bytes(before)
        if before is None and adapters + 1 > (LIMITS.registered_adapters or 0):
            return "over"
        if gained > 0 and num_bytes + gained > (LIMITS.adapter_bytes or 0):
            return "over"
        return ""


STEP = st.tuples(
    st.sampled_from(["put", "put", "put", "delete", "repeat an old one"]),
    st.sampled_from(TENANTS),
    st.sampled_from(NAMES),
    st.frozensets(st.sampled_from(("x", "u", "v")), max_size=2),  # aliases
    st.frozensets(st.sampled_from(("t0", "t1", "t2")), max_size=2),  # shared with
    st.dictionaries(st.sampled_from(("l", "m")), st.sampled_from("12"), max_size=2),  # labels
    st.integers(1, 60),  # bytes
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=25))
async def test_no_history_leaves_anything_but_what_the_model_has(redis: Redis, steps: list[Any]) -> None:
    await redis.flushdb()

    async def limits_of(_: str) -> Limits:
        return LIMITS

    stores, model = [AdapterStore(redis, limits_of) for _ in range(2)], Model()
    old: dict[AdapterKey, Adapter] = {}
    for number, (what, tenant, name, aliases, shared_with, labels, size) in enumerate(steps):
        key = AdapterKey(tenant, name)
        before = old.get(key) if what == "repeat an old one" else model.adapters.get(key)
        after = None
        if what != "delete":
            after = Adapter(
                key=key,
                base_model="llama",
                revisions=(replace(revision(f"{number}"), size_bytes=size),),
                current_revision=1,
                generation=0,
                resource_version=0,
                aliases=tuple(sorted(aliases - {name})),
                shared_with=tuple(sorted(shared_with - {tenant})),
                labels=labels,
            )
        elif before is None:
            continue
        await _commit(stores[number % 2], model, before, after)
        if before is not None:
            old[key] = before
    await _check(redis, model)


async def _commit(store: AdapterStore, model: Model, before: Adapter | None, after: Adapter | None) -> None:
    expected = model.refusal(before, after)
    try:
        stored = await store.commit(before, after)
    except (CommitConflict, NameTaken, QuotaExceeded) as error:
        kinds = {CommitConflict: "conflict", NameTaken: "taken", QuotaExceeded: "over"}
        refused = kinds[type(error)]
    else:
        refused = ""
        model.num_changes += 1
        assert stored.resource_version == model.num_changes
        if after is None:
            del model.adapters[stored.key]
        else:
            model.adapters[stored.key] = stored
    assert refused == expected


async def _check(redis: Redis, model: Model) -> None:
    store = AdapterStore(redis)
    assert {adapter.key: adapter async for adapter in store.scan("-", "+")} == model.adapters
    names = await redis.hgetall(keys.REGISTRY_NAMES)
    assert names == {name: str(key) for name, key in model.names().items()}
    for tenant in (*TENANTS, "t2"):
        held = await redis.hgetall(keys.registry_held(tenant))
        assert (int(held.get("adapters", 0)), int(held.get("bytes", 0))) == model.held(tenant)
        shared = await redis.zrange(keys.registry_shared(tenant), 0, -1)
        assert shared == model.index(lambda adapter, tenant=tenant: tenant in adapter.shared_with)
    for label in ("l", "m"):
        for value in "12":
            labelled = await redis.zrange(keys.registry_label(label, value), 0, -1)
            assert labelled == model.index(
                lambda adapter, label=label, value=value: adapter.labels.get(label) == value
            )
    assert await redis.xlen(keys.REGISTRY_CHANGES) == model.num_changes


def _bytes(adapter: Adapter | None) -> int:
    return sum(one.size_bytes for one in adapter.revisions) if adapter else 0
