"""Audit: who changed what, or tried to: one entry a call, in a Redis stream.

Owns the stream, not the choice of what is written. A call is written down before it does anything,
with the status BEGUN, and that entry is replaced when it has ended. So one that stays BEGUN ended
with its process, with Redis or with its caller, and what it did is not known. Invariants: nothing
is changed that has no entry; what has ended is never changed; the oldest leave when there are
MAX_EVENTS.
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from control_plane.errors import InvalidArgument
from control_plane.store import keys
from control_plane.store.script import Script

BEGUN = "BEGUN"
MAX_EVENTS = 100_000  # about 30 MB
DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
_OUTCOME = Script(Path(__file__).with_name("lua") / "outcome.lua")
_EVENT_ID = re.compile(r"[0-9]{1,19}-[0-9]{1,19}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEvent:
    """One call."""

    key_id: str
    tenant: str  # the key's; empty for administrators
    method: str
    targets: tuple[str, ...]  # what it was about, as `field=value`
    status: str  # name of the status code, or BEGUN
    request_id: str
    event_id: str = ""  # given by the log
    time_s: float = 0.0  # Unix time, from Redis


class AuditLog:
    """Appends and pages."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def append(self, event: AuditEvent) -> AuditEvent:
        """Write one event and return it with its id; raise StoreUnavailable."""
        fields: Any = _encode(event)
        event_id = await self._redis.xadd(keys.ACCESS_AUDIT, fields, maxlen=MAX_EVENTS, approximate=True)
        return replace(event, event_id=str(event_id))

    async def end(self, begun: AuditEvent, status: str) -> None:
        """Replace an entry by how its call ended; raise StoreUnavailable."""
        fields = _encode(replace(begun, status=status))
        pairs = [part for field in fields.items() for part in field]
        await _OUTCOME.run(self._redis, (keys.ACCESS_AUDIT,), (begun.event_id, MAX_EVENTS, *pairs))

    async def page(self, page_size: int = 0, page_token: str = "") -> tuple[tuple[AuditEvent, ...], str]:
        """Return events, newest first, and the token of the next page; '' after the last."""
        if page_size < 0:
            raise InvalidArgument("page_size", page_size, "must be at least 0")
        if page_token and (not _EVENT_ID.fullmatch(page_token) or not page_token.strip("0-")):
            raise InvalidArgument("page_token", page_token, "is not one of this listing")
        size = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        entries: Any = await self._redis.xrevrange(
            keys.ACCESS_AUDIT, max=f"({page_token}" if page_token else "+", count=size + 1
        )
        events = tuple(_decode(event_id, fields) for event_id, fields in entries[:size])
        return events, events[-1].event_id if len(entries) > size else ""


def _encode(event: AuditEvent) -> dict[str, str]:
    return {
        "key_id": event.key_id,
        "tenant": event.tenant,
        "method": event.method,
        "targets": json.dumps(event.targets),
        "status": event.status,
        "request_id": event.request_id,
    }


def _decode(event_id: str, fields: dict[str, str]) -> AuditEvent:
    return AuditEvent(
        key_id=fields["key_id"],
        tenant=fields["tenant"],
        method=fields["method"],
        targets=tuple(json.loads(fields["targets"])),
        status=fields["status"],
        request_id=fields["request_id"],
        event_id=event_id,
        time_s=int(event_id.partition("-")[0]) / 1000,
    )
