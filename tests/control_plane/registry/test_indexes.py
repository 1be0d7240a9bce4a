"""What a listing reads: only what it shows, whatever else is registered."""

from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from control_plane.registry import listing
from control_plane.registry.service import Registry
from control_plane.registry.store import AdapterStore
from control_plane.registry.types import Adapter, AdapterKey
from tests.control_plane.placement.examples import revision


async def stored(redis: Redis, tenant: str, name: str, **fields: Any) -> Adapter:
    adapter = Adapter(
        key=AdapterKey(tenant, name),
        base_model="llama",
        revisions=fields.pop("revisions", (revision(name),)),
        current_revision=1,
        generation=0,
        resource_version=0,
        **fields,
    )
    return await AdapterStore(redis).commit(None, adapter)


async def names(registry: Registry, tenant: str, after: str = "", chunk: int = 2) -> Sequence[str]:
    return [adapter.known_as(tenant) async for adapter in registry.visible(tenant, after, chunk)]


async def test_own_and_shared_adapters_come_in_one_order_of_the_names_a_tenant_uses(
    redis: Redis, registry: Registry
) -> None:
    for name in ("zebra", "bot", "ant", "cat"):
        await stored(redis, "globex", name)
    for owner, name in (("acme", "bot"), ("hooli", "dog"), ("bob", "x")):
        await stored(redis, owner, name, shared_with=("globex",))
        await stored(redis, owner, "private")
    expected = ["acme/bot", "ant", "bob/x", "bot", "cat", "hooli/dog", "zebra"]
    assert await names(registry, "globex") == expected
    for number, name in enumerate(expected):
        assert await names(registry, "globex", name) == expected[number + 1 :]
    # After the id of a base model, which need not be a well-formed name.
    assert await names(registry, "globex", "meta/Llama@3") == ["zebra"]


async def test_a_deleted_adapter_leaves_every_index(redis: Redis, registry: Registry) -> None:
    await stored(redis, "acme", "bot", shared_with=("globex",), labels={"tier": "gold"})
    await registry.delete(AdapterKey("acme", "bot"))
    assert await names(registry, "globex") == []
    assert await redis.keys("lp:{registry}:shared:*") == []
    assert await redis.keys("lp:{registry}:label:*") == []


async def test_labels_are_found_without_reading_the_rest(redis: Redis, registry: Registry) -> None:
    for number in range(20):
        await stored(redis, "acme", f"bot-{number:02}", labels={"tier": "tin"})
    await stored(redis, "acme", "gold-1", labels={"tier": "gold", "team": "a"})
    await stored(redis, "acme", "gold-2", labels={"tier": "gold", "team": "b"})
    page = await registry.list("acme", labels={"tier": "gold"})
    assert [adapter.key.name for adapter in page.adapters] == ["gold-1", "gold-2"]
    page = await registry.list(None, labels={"tier": "gold", "team": "b"})
    assert [adapter.key.name for adapter in page.adapters] == ["gold-2"]
    assert (await registry.list("acme", labels={"tier": "iron"})).adapters == ()


async def test_a_filter_that_few_pass_ends_its_page_early_and_misses_nothing(
    redis: Redis, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "READS_PER_PAGE", 4)
    for number in range(10):
        await stored(redis, f"t{number}", "bot" if number == 7 else "other")
    seen, token, pages = [], "", 0
    while True:
        page = await registry.list(None, name_prefix="bot", page_token=token)
        seen += [str(adapter.key) for adapter in page.adapters]
        token, pages = page.next_page_token, pages + 1
        if not token:
            break
    assert (seen, pages) == (["t7/bot"], 3)
