"""Migration: brings a registry that an older release wrote to what this one reads.

Runs at the start of every replica and does nothing when it was done. Invariant: it only adds to
indexes what the adapters themselves say, so running it again, or twice at once, changes nothing.

Formats: 1 had no indexes of labels and of tenants that adapters are shared with; 2 has them; in 3 what is
RESOLVING has a reading, without which nobody would ever know that its reader is gone.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import structlog
from redis.asyncio import Redis

from control_plane.registry import codec
from control_plane.registry.readings import forsake
from control_plane.registry.store import indexes
from control_plane.registry.types import Adapter, RevisionState
from control_plane.store import keys
from control_plane.store.script import Script

FORMAT = 3
CHUNK = 200  # adapters read at once, and written at once
_REINDEX = Script(Path(__file__).with_name("lua") / "reindex.lua")
_log = structlog.get_logger(__name__)


async def migrate(redis: Redis) -> int:
    """Index what is not indexed; return how many adapters were looked at, 0 when all was done before."""
    stored: Any = await redis.get(keys.REGISTRY_FORMAT)
    if int(stored or 1) >= FORMAT:
        return 0
    num_adapters = 0
    async for adapters in _all(redis):
        await asyncio.gather(*(_index(redis, adapter) for adapter in adapters))
        for adapter in adapters:
            if adapter.current.state is RevisionState.RESOLVING:
                await forsake(redis, adapter.key)
        num_adapters += len(adapters)
    # Last: a migration that is cut off begins again.
    await redis.set(keys.REGISTRY_FORMAT, FORMAT)
    if num_adapters:
        _log.info("adapters indexed", num_adapters=num_adapters, format=FORMAT)
    return num_adapters


async def _all(redis: Redis) -> AsyncIterator[list[Adapter]]:
    """Yield every adapter at least once, by the hash itself and not by an index of it."""
    cursor = 0
    while True:
        # redis-py annotates the return for undecoded replies too.
        reply: Any = await redis.hscan(keys.REGISTRY_ADAPTERS, cursor, count=CHUNK)
        cursor, stored = reply
        yield [codec.decode(text) for text in stored.values()]
        if not cursor:
            return


async def _index(redis: Redis, adapter: Adapter) -> None:
    await _REINDEX.run(
        redis,
        (keys.REGISTRY_ADAPTERS, keys.REGISTRY_INDEX, *indexes(adapter)),
        (str(adapter.key), adapter.resource_version),
    )
