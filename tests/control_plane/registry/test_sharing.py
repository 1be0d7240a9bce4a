"""Sharing an adapter with other tenants, and taking it back."""

from pathlib import Path

import pytest

from control_plane.errors import InvalidArgument, NotFound
from control_plane.registry.service import Registry
from control_plane.registry.types import AdapterKey, NewAdapter
from tests.control_plane.adapter_files import write_adapter

BOT = AdapterKey("acme", "bot")
BASE = "smollm2-135m-instruct"


@pytest.fixture
async def registered(registry: Registry, root: Path) -> Registry:
    source = write_adapter(root / "acme" / "bot")
    await registry.register(NewAdapter(key=BOT, source=str(source), base_model=BASE))
    return registry


async def test_a_tenant_uses_an_adapter_from_its_sharing_until_that_is_taken_back(
    registered: Registry,
) -> None:
    with pytest.raises(NotFound):
        await registered.resolve("globex", "acme/bot", {BASE})
    await registered.share(BOT, ["globex", "initech"])
    target = await registered.resolve("globex", "acme/bot", {BASE})
    assert target.adapter is not None
    assert target.adapter.key == BOT
    assert [adapter.key async for adapter in registered.visible("globex")] == [BOT]
    after = await registered.unshare(BOT, ["globex", "nobody"])
    assert after.shared_with == ("initech",)
    with pytest.raises(NotFound):
        await registered.resolve("globex", "acme/bot", {BASE})
    assert [adapter.key async for adapter in registered.visible("globex")] == []


async def test_sharing_again_changes_nothing(registered: Registry) -> None:
    once = await registered.share(BOT, ["globex"])
    assert await registered.share(BOT, ["globex"]) == once


async def test_a_name_that_is_no_tenants_is_refused(registered: Registry) -> None:
    with pytest.raises(InvalidArgument, match="with_tenants"):
        await registered.share(BOT, ["Not A Tenant"])
