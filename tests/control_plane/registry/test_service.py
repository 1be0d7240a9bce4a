"""The registry: registering, publishing, naming and listing, on a real Valkey."""

import asyncio
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from redis.asyncio import Redis

from control_plane.errors import (
    InvalidArgument,
    NameTaken,
    NotFound,
    QuotaExceeded,
    Refused,
    StaleRevision,
)
from control_plane.quotas.types import Limits
from control_plane.registry.edits import MAX_REVISIONS
from control_plane.registry.service import Registry
from control_plane.registry.types import (
    Adapter,
    AdapterKey,
    NewAdapter,
    PinTier,
    ReloadPolicy,
    Target,
)
from control_plane.resolvers.chain import ResolverChain
from control_plane.resolvers.filesystem import FilesystemResolver
from control_plane.resolvers.types import Resolved, Resolver, ResolveRequest
from tests.control_plane.adapter_files import write_adapter

BOT = AdapterKey("acme", "bot")
BASE = "smollm2-135m-instruct"


def new(root: Path, key: AdapterKey = BOT, fill: float = 1.0, **fields: object) -> NewAdapter:
    source = write_adapter(root / key.tenant / key.name, fill=fill)
    declared = NewAdapter(key=key, source=str(source), base_model=BASE)
    return replace(declared, **fields)  # type: ignore[arg-type]


async def test_a_registered_adapter_is_revision_1_of_its_source(registry: Registry, root: Path) -> None:
    declared = new(root, aliases=("helper",), labels={"team": "a"}, shared_with=("globex",))
    adapter = await registry.register(declared)
    assert adapter.key == BOT
    assert adapter.base_model == BASE
    assert adapter.current.number == 1
    assert adapter.current.rank == 4
    assert adapter.current.source == str(root / "acme" / "bot")
    assert adapter.current.digest.startswith("sha256:")
    assert adapter.current.created_s == adapter.created_s > 1.7e9
    assert (adapter.aliases, adapter.labels, adapter.shared_with) == (("helper",), {"team": "a"}, ("globex",))
    assert await registry.get(BOT) == adapter
    assert await registry.get(AdapterKey("acme", "helper")) == adapter


async def test_an_adapter_without_a_source_is_found_by_name(registry: Registry, root: Path) -> None:
    adapter = await registry.register(replace(new(root), source=""))
    assert adapter.current.source == str(root / "acme" / "bot")


async def test_the_identical_registration_again_returns_the_stored_adapter(
    registry: Registry, root: Path
) -> None:
    declared = new(root, aliases=("b", "a"))
    first = await registry.register(declared)
    assert await registry.register(replace(declared, aliases=("a", "b"))) == first
    assert await registry.version() == first.resource_version


async def test_repeating_the_registration_after_a_publish_changes_nothing(
    registry: Registry, root: Path
) -> None:
    declared = new(root)
    await registry.register(declared)
    published = await registry.publish(BOT, str(write_adapter(root / "v2", fill=2.0)))
    assert await registry.register(declared) == published


@pytest.mark.parametrize("change", [{"labels": {"x": "y"}}, {"shared_with": ("globex",)}, {"base_model": ""}])
async def test_another_registration_of_the_name_is_refused(
    registry: Registry, root: Path, change: dict[str, object]
) -> None:
    first = await registry.register(new(root))
    with pytest.raises(NameTaken, match="acme/bot"):
        await registry.register(new(root, **change))
    assert await registry.get(BOT) == first


async def test_other_weights_under_the_name_are_refused(registry: Registry, root: Path) -> None:
    await registry.register(new(root))
    with pytest.raises(NameTaken, match="acme/bot"):
        await registry.register(new(root, fill=2.0))


async def test_names_and_aliases_are_unique_within_a_tenant_only(registry: Registry, root: Path) -> None:
    await registry.register(new(root, aliases=("helper",)))
    for key, aliases in (("helper", ()), ("other", ("bot",)), ("other", ("helper",))):
        with pytest.raises(NameTaken):
            await registry.register(new(root, AdapterKey("acme", key), aliases=aliases))
    assert (await registry.list("acme")).adapters == (await registry.get(BOT),)
    await registry.register(new(root, AdapterKey("globex", "helper")))


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("tenant", {"key": AdapterKey("ACME", "bot")}),
        ("name", {"key": AdapterKey("acme", "../bot")}),
        ("aliases", {"aliases": ("a b",)}),
        ("shared_with", {"shared_with": ("*",)}),
        ("expected_digest", {"expected_digest": "1234"}),
    ],
)
async def test_a_bad_field_is_named(
    registry: Registry, root: Path, field: str, change: dict[str, object]
) -> None:
    declared = replace(new(root), **change)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument) as error:
        await registry.register(declared)
    assert error.value.field == field


async def test_another_digest_than_expected_is_refused_with_both(registry: Registry, root: Path) -> None:
    expected = "sha256:" + "0" * 64
    with pytest.raises(Refused, match=f"sha256:[0-9a-f]+, not the expected {expected}"):
        await registry.register(new(root, expected_digest=expected))


async def test_a_publish_adds_a_revision_and_makes_it_current(registry: Registry, root: Path) -> None:
    first = await registry.register(new(root))
    source = str(write_adapter(root / "v2", fill=2.0, rank=8))
    second = await registry.publish(BOT, source, expected_revision=1, reload_policy=ReloadPolicy.DRAIN)
    assert [revision.number for revision in second.revisions] == [1, 2]
    assert second.current.rank == 8
    assert second.current.digest != first.current.digest
    assert second.reload_policy is ReloadPolicy.DRAIN
    assert second.generation > first.generation
    assert second.resource_version > first.resource_version
    assert second.updated_s >= first.updated_s
    assert await registry.get(BOT) == second


async def test_a_publish_without_a_source_reads_the_current_one_again(registry: Registry, root: Path) -> None:
    first = await registry.register(new(root))
    assert await registry.publish(BOT) == first  # nothing new there
    write_adapter(root / "acme" / "bot", fill=2.0)
    second = await registry.publish(BOT)
    assert second.current_revision == 2
    assert second.current.source == first.current.source


async def test_the_same_weights_from_another_place_are_no_revision_but_are_read_from_there(
    registry: Registry, root: Path
) -> None:
    declared = new(root)
    first = await registry.register(declared)
    elsewhere = str(write_adapter(root / "elsewhere", base_model_name_or_path=BASE))
    shutil.copytree(root / "acme" / "bot", root / "copy")
    moved = await registry.publish(BOT, str(root / "copy"))
    assert [revision.number for revision in moved.revisions] == [1]
    assert moved.current == replace(first.current, source=str(root / "copy"))
    assert await registry.register(declared) == moved
    assert await registry.register(replace(declared, source=str(root / "copy"))) == moved
    # Another config is another digest, whatever the weights.
    assert (await registry.publish(BOT, elsewhere)).current_revision == 2
    kept = await registry.publish(BOT, str(root / "acme" / "bot"), keep_current=True)
    assert [revision.number for revision in kept.revisions] == [1, 2]
    assert kept.revision(1) == first.current


async def test_a_publish_that_is_refused_leaves_the_adapter_as_it_was(registry: Registry, root: Path) -> None:
    first = await registry.register(new(root))
    other = write_adapter(root / "other", base_model_name_or_path="meta-llama/Llama-3-8B")
    with pytest.raises(Refused, match=r"Llama-3-8B.*smollm2"):
        await registry.publish(BOT, str(other))
    assert await registry.get(BOT) == first


async def test_a_publish_over_another_revision_than_expected_is_stale(registry: Registry, root: Path) -> None:
    await registry.register(new(root))
    with pytest.raises(StaleRevision, match="is at revision 1, not the expected 7"):
        await registry.publish(BOT, expected_revision=7)


async def test_of_two_registries_that_race_to_publish_exactly_one_wins(
    redis: Redis, resolvers: ResolverChain, root: Path
) -> None:
    replicas = [Registry(redis, resolvers), Registry(redis, resolvers)]
    await replicas[0].register(new(root))
    for revision in range(1, 6):
        sources = [str(write_adapter(root / f"v{revision}{i}", fill=10 * revision + i)) for i in (0, 1)]
        results = await asyncio.gather(
            *(
                replica.publish(BOT, source, expected_revision=revision)
                for replica, source in zip(replicas, sources, strict=True)
            ),
            return_exceptions=True,
        )
        won = [result for result in results if isinstance(result, Adapter)]
        lost = [result for result in results if isinstance(result, StaleRevision)]
        assert (len(won), len(lost)) == (1, 1)
        assert await replicas[0].get(BOT) == won[0]


async def test_changes_without_an_expectation_all_happen_though_they_race(
    redis: Redis, resolvers: ResolverChain, root: Path
) -> None:
    replicas = [Registry(redis, resolvers) for _ in range(8)]
    await replicas[0].register(new(root))
    sources = [str(write_adapter(root / f"v{i}", fill=i)) for i in range(2, 10)]
    await asyncio.gather(
        *(replica.publish(BOT, source) for replica, source in zip(replicas, sources, strict=True))
    )
    adapter = await replicas[0].get(BOT)
    assert [revision.number for revision in adapter.revisions] == list(range(1, 10))
    assert {revision.source for revision in adapter.revisions[1:]} == set(sources)


async def test_old_revisions_are_dropped_but_never_the_current_one(registry: Registry, root: Path) -> None:
    await registry.register(new(root))
    for fill in range(2, MAX_REVISIONS + 4):
        adapter = await registry.publish(BOT, str(write_adapter(root / f"v{fill}", fill=fill)))
    assert len(adapter.revisions) == MAX_REVISIONS
    assert adapter.current_revision == adapter.revisions[-1].number == MAX_REVISIONS + 3
    assert await registry._redis.hget("lp:{registry}:held:acme", "bytes") == str(
        sum(revision.size_bytes for revision in adapter.revisions)
    )


async def test_a_rollback_makes_an_older_revision_current(registry: Registry, root: Path) -> None:
    await registry.register(new(root))
    for fill in (2, 3):
        await registry.publish(BOT, str(write_adapter(root / f"v{fill}", fill=fill)))
    assert (await registry.rollback(BOT)).current_revision == 2
    assert (await registry.rollback(BOT, revision=3, expected_revision=2)).current_revision == 3
    rolled_back = await registry.rollback(BOT, revision=1)
    assert rolled_back.current_revision == 1
    with pytest.raises(StaleRevision):
        await registry.rollback(BOT, revision=2, expected_revision=3)
    with pytest.raises(NotFound, match="acme/bot@9"):
        await registry.rollback(BOT, revision=9)
    with pytest.raises(NotFound, match="revision"):
        await registry.rollback(BOT)
    published = await registry.publish(BOT, str(write_adapter(root / "v4", fill=4)))
    assert published.current_revision == 4  # numbers are never used twice


async def test_a_pin_is_kept_and_taken_back(registry: Registry, root: Path) -> None:
    first = await registry.register(new(root))
    pinned = await registry.pin(BOT, PinTier.SLOT)
    assert pinned.pin is PinTier.SLOT
    assert pinned.generation > first.generation
    assert await registry.pin(BOT, PinTier.SLOT) == pinned
    assert (await registry.pin(BOT, PinTier.NONE)).pin is PinTier.NONE


async def test_a_deleted_adapter_frees_its_names_and_comes_back_with_a_higher_generation(
    registry: Registry, root: Path
) -> None:
    declared = new(root, aliases=("helper",))
    first = await registry.register(declared)
    await registry.delete(BOT)
    for name in ("bot", "helper"):
        with pytest.raises(NotFound):
            await registry.get(AdapterKey("acme", name))
    with pytest.raises(NotFound):
        await registry.delete(BOT)
    assert (await registry.list(None)).adapters == ()
    again = await registry.register(new(root, AdapterKey("acme", "helper"), aliases=("bot",)))
    assert again.generation > first.generation


async def test_a_tenant_registers_no_more_adapters_and_bytes_than_its_limits(
    redis: Redis, resolvers: ResolverChain, root: Path
) -> None:
    limits = Limits(registered_adapters=2)

    async def limits_of(tenant: str) -> Limits:
        return limits if tenant == "acme" else Limits()

    registry = Registry(redis, resolvers, limits_of)
    keys = [AdapterKey("acme", f"bot-{number}") for number in range(5)]
    results = await asyncio.gather(
        *(registry.register(new(root, key)) for key in keys), return_exceptions=True
    )
    assert sum(isinstance(result, Adapter) for result in results) == 2
    refused = next(result for result in results if isinstance(result, QuotaExceeded))
    assert (refused.limit, refused.maximum, refused.retry_after_s) == ("registered_adapters", 2, None)
    await registry.register(new(root, AdapterKey("globex", "bot")))

    [first, _] = (await registry.list("acme")).adapters
    await registry.delete(first.key)
    limits = Limits(adapter_bytes=first.current.size_bytes + 1)
    with pytest.raises(QuotaExceeded, match="adapter_bytes"):
        await registry.register(new(root, first.key))
    limits = Limits()
    await registry.register(new(root, first.key))


async def test_a_model_name_is_a_base_model_an_adapter_an_alias_or_a_revision(
    registry: Registry, root: Path
) -> None:
    await registry.register(new(root, aliases=("helper",)))
    adapter = await registry.publish(BOT, str(write_adapter(root / "v2", fill=2.0)))
    current, old = Target(BASE, adapter, adapter.current), Target(BASE, adapter, adapter.revision(1))
    assert await registry.resolve("acme", BASE, {BASE}) == Target(BASE)
    assert await registry.resolve("acme", "bot", {BASE}) == current
    assert await registry.resolve("acme", "helper", {BASE}) == current
    assert await registry.resolve("acme", "acme/bot", {BASE}) == current
    assert await registry.resolve("acme", "bot@1", {BASE}) == old
    assert await registry.resolve("acme", "helper@2", {BASE}) == current
    for model in ("bot@3", "nobody", "", "Bot", "bot@x", "other-base"):
        with pytest.raises(NotFound):
            await registry.resolve("acme", model, {BASE})


async def test_an_adapter_is_usable_by_its_tenant_and_those_it_is_shared_with_only(
    registry: Registry, root: Path
) -> None:
    adapter = await registry.register(new(root, shared_with=("globex",)))
    assert await registry.resolve("globex", "acme/bot", {BASE}) == Target(BASE, adapter, adapter.current)
    with pytest.raises(NotFound) as hidden:
        await registry.resolve("initech", "acme/bot", {BASE})
    with pytest.raises(NotFound) as missing:
        await registry.resolve("initech", "acme/bat", {BASE})
    assert str(hidden.value).replace("bot", "bat") == str(missing.value)
    with pytest.raises(NotFound):
        await registry.resolve("globex", "bot", {BASE})
    assert [seen async for seen in registry.visible("globex")] == [adapter]
    assert [seen async for seen in registry.visible("initech")] == []


async def test_an_adapter_without_a_base_model_belongs_to_the_only_one_served(
    registry: Registry, root: Path
) -> None:
    await registry.register(new(root, base_model=""))
    assert (await registry.resolve("acme", "bot", {BASE})).base_model == BASE
    with pytest.raises(InvalidArgument, match="base_model"):
        await registry.resolve("acme", "bot", {BASE, "other"})


async def test_pages_hold_every_match_once_in_order(registry: Registry, root: Path) -> None:
    keys = [
        AdapterKey(tenant, f"{kind}-{i}") for tenant in ("acme", "acme-2") for kind in "ab" for i in range(3)
    ]
    for key in keys:
        await registry.register(new(root, key, labels={"kind": key.name[0]}))

    async def listed(tenant: str | None, **filters: object) -> list[AdapterKey]:
        found: list[AdapterKey] = []
        token = ""
        while True:
            page = await registry.list(tenant, page_size=2, page_token=token, **filters)  # type: ignore[arg-type]
            assert len(page.adapters) <= 2
            found += [adapter.key for adapter in page.adapters]
            token = page.next_page_token
            if not token:
                return found

    assert await listed("acme") == [key for key in keys if key.tenant == "acme"]
    assert await listed(None) == sorted(keys, key=str)
    assert await listed("acme", name_prefix="b-") == [AdapterKey("acme", f"b-{i}") for i in range(3)]
    assert await listed(None, name_prefix="b-1") == [AdapterKey("acme-2", "b-1"), AdapterKey("acme", "b-1")]
    assert await listed("acme-2", labels={"kind": "a"}) == [AdapterKey("acme-2", f"a-{i}") for i in range(3)]
    assert await listed("acme", labels={"kind": "c"}) == []
    assert [adapter.key async for adapter in registry.all()] == sorted(keys, key=str)


@pytest.mark.parametrize(
    ("field", "arguments"), [("page_size", {"page_size": -1}), ("page_token", {"page_token": "("})]
)
async def test_a_bad_page_is_refused(registry: Registry, field: str, arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument) as error:
        await registry.list("acme", **arguments)  # type: ignore[arg-type]
    assert error.value.field == field


class Counting:
    """A resolver that counts how often it is asked."""

    name = "counting"

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self.asked = 0

    async def resolve(self, request: ResolveRequest) -> Resolved | None:
        self.asked += 1
        return await self._resolver.resolve(request)

    async def close(self) -> None:
        await self._resolver.close()


async def test_a_request_for_an_unknown_name_registers_what_is_kept_for_its_tenant(
    redis: Redis, root: Path
) -> None:
    resolver = Counting(FilesystemResolver([root]))
    chain = ResolverChain([resolver], time.monotonic)
    registry, other = (Registry(redis, chain, resolve_on_request=True) for _ in range(2))
    write_adapter(root / "acme" / "bot", base_model_name_or_path=BASE)
    targets = await asyncio.gather(
        *(one.resolve("acme", "bot", {BASE}) for one in (registry, other) for _ in range(5))
    )
    assert {target.revision for target in targets if target.revision} == {(await registry.get(BOT)).current}
    assert (await registry.get(BOT)).base_model == BASE
    # Not another tenant's, not a revision, and what nobody has is asked for once in a while.
    resolver.asked = 0
    for tenant, model in (("globex", "acme/bat"), ("globex", "bot"), ("globex", "bot"), ("acme", "bot@7")):
        with pytest.raises(NotFound, match="model"):
            await registry.resolve(tenant, model, {BASE})
    assert resolver.asked == 1
    assert await registry.get(BOT) == (await other.get(BOT))


async def test_without_leave_a_request_registers_nothing(
    redis: Redis, resolvers: ResolverChain, root: Path
) -> None:
    write_adapter(root / "acme" / "bot")
    with pytest.raises(NotFound):
        await Registry(redis, resolvers).resolve("acme", "bot", {BASE})


async def test_a_bad_adapter_found_on_request_is_refused_with_the_reason(
    redis: Redis, resolvers: ResolverChain, root: Path
) -> None:
    (write_adapter(root / "acme" / "bot") / "adapter_model.safetensors").write_bytes(b"garbage")
    with pytest.raises(Refused, match="safetensors"):
        await Registry(redis, resolvers, resolve_on_request=True).resolve("acme", "bot", {BASE})
