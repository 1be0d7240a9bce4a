"""Changes: what happened to adapters, in order, from the registry's stream.

Owns reading the stream, not writing it. Invariant: changes come in the order of their resource
versions, none twice and none left out; when one has been trimmed already, the reader is told.
"""

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from redis.asyncio import Redis

from control_plane.errors import StaleRevision
from control_plane.registry import codec
from control_plane.registry.types import Adapter
from control_plane.store import keys
from control_plane.store.client import dedicated

BLOCK_MS = 2000  # below the client's reply timeout
BATCH = 256


class ChangeKind(Enum):
    """What happened to an adapter."""

    ADDED = "ADDED"
    MODIFIED = "MODIFIED"
    DELETED = "DELETED"


@dataclass(frozen=True, slots=True)
class AdapterChange:
    """One change; `adapter` is as after it (as before it, when deleted), with the change's version."""

    kind: ChangeKind
    adapter: Adapter


async def changes(redis: Redis, after: int) -> AsyncGenerator[AdapterChange, None]:
    """Yield every change with a resource version above `after`; wait for more, for ever.

    Raises StaleRevision when some of them are kept no longer: read the present state, go on from
    its version. Raises StoreUnavailable when the connection is lost: resume after the last change
    seen. Close the iterator (or cancel its task) to give its connection back.
    """
    connection = dedicated(redis)
    try:
        position = after
        while True:
            for change in _in_order(await _read(connection, position), position):
                position = change.adapter.resource_version
                yield change
    finally:
        await connection.aclose()


async def kept(redis: Redis, after: int) -> Sequence[AdapterChange]:
    """Return the first changes after a version, at most BATCH, without waiting for any.

    Raises StaleRevision as `changes`.
    """
    entries: Any = await redis.xrange(keys.REGISTRY_CHANGES, min=f"({after}-0", count=BATCH)
    return list(_in_order(entries, after))


def _in_order(entries: Iterable[tuple[str, dict[str, str]]], position: int) -> Iterator[AdapterChange]:
    for entry_id, fields in entries:
        version = int(entry_id.partition("-")[0])
        # Versions have no gaps: a jump means that the entries between were trimmed.
        if version != position + 1:
            raise StaleRevision(
                "change", str(position + 1), f"is kept no longer; the next kept one is {version}"
            )
        position = version
        yield AdapterChange(ChangeKind(fields["kind"]), codec.decode(fields["adapter"]))


async def _read(connection: Redis, position: int) -> list[tuple[str, dict[str, str]]]:
    """Return the entries after a position; none when there is no change for a while."""
    reply: Any = await connection.xread({keys.REGISTRY_CHANGES: f"{position}-0"}, count=BATCH, block=BLOCK_MS)
    if not reply:
        return []
    # One stream was asked for: a list of pairs under RESP2, a mapping (entries nested) under RESP3.
    if isinstance(reply, dict):
        return [entry for entries in reply[keys.REGISTRY_CHANGES] for entry in entries]
    return list(reply[0][1])
