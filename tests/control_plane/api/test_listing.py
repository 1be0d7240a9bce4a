"""What a page of adapters costs: a bounded number of commands to Redis, however many rows it has."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from control_plane.placement import commands
from control_plane.registry.store import AdapterStore
from control_plane.registry.types import AdapterKey
from control_plane.store.client import StoreClient
from control_plane.workers.ledger import Ledger
from control_plane.workers.types import Outcome
from protos.registry.v1 import registry_pb2 as pb
from tests.control_plane.placement.examples import adapter, worker
from tests.control_plane.replica import replica

ROWS = 1000
MOST = 40  # three for the page; the rest is what a replica does by itself meanwhile


async def test_a_page_of_a_thousand_adapters_is_a_few_commands_and_has_their_problems(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = AdapterStore(redis)
    keys = [AdapterKey("acme", f"bot-{number:04}") for number in range(ROWS)]
    await asyncio.gather(*(store.commit(None, adapter(key.name, key=key)) for key in keys))
    refused = commands.load("w", adapter("bot-0500", key=AdapterKey("acme", "bot-0500")))
    await Ledger(redis, lambda: 0.0).record(worker("w"), refused, Outcome(ok=False, reason="rank"))
    sent: list[str] = []
    send = StoreClient.execute_command

    async def counted(self: StoreClient, *args: Any, **options: Any) -> Any:
        sent.append(str(args[0]))
        return await send(self, *args, **options)

    async with replica(redis, tmp_path, leader_lease_ttl_s=10.0) as control:
        monkeypatch.setattr(StoreClient, "execute_command", counted)
        page = await control.registry.ListAdapters(
            pb.ListAdaptersRequest(page_size=ROWS), metadata=control.as_("acme")
        )
        monkeypatch.undo()
    assert len(page.adapters) == ROWS
    assert [one.name for one in page.adapters if one.problems] == ["bot-0500"]
    assert len(sent) <= MOST, sent
