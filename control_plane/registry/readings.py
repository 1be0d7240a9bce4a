"""Readings: which replica reads a slow source for a registration, as a lease in Redis.

Owns an entry for every registration that is RESOLVING: until when its reader is taken to live, and what
whoever reads in its place must know beside the adapter. Knows no sources and no states. Invariant: one
reader at a time. The lease ends on the store's clock; a reader counts it on its own from before it
asked, so it has stopped before another begins.
"""

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from redis.asyncio import Redis

from control_plane.errors import StoreUnavailable
from control_plane.registry.types import AdapterKey
from control_plane.store import keys
from control_plane.store.script import Script

_LUA = Path(__file__).with_name("lua")
_BEGIN = Script(_LUA / "begin_reading.lua")
_RENEW = Script(_LUA / "renew_reading.lua")
_TAKE = Script(_LUA / "take_reading.lua")
_END = Script(_LUA / "end_reading.lua")
RENEWALS_PER_LEASE = 3
_HASH = (keys.REGISTRY_RESOLVING,)
_Result = TypeVar("_Result")


class ReadingLost(Exception):
    """Another replica reads, or may: the lease could not be renewed. Never leaves this package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What reading a source again takes beside what the adapter says."""

    expected_digest: str = ""
    confined: bool = True
    keep_failure: bool = True  # else a registration that fails is gone
    attempts: int = 1  # readers so far


@dataclass(frozen=True, slots=True)
class Reading:
    """A registration that this replica reads for."""

    key: AdapterKey
    terms: Terms
    reader: str  # new for each
    asked_s: float  # for the lease, on the local clock


async def forsake(redis: Redis, key: AdapterKey) -> None:
    """Note a reading without a reader, unless there is one of that name: somebody will take it up."""
    text = json.dumps({**asdict(Terms(attempts=0)), "reader": "", "until_ms": 0})
    written: Any = redis.hsetnx(keys.REGISTRY_RESOLVING, str(key), text)
    await written


class Readings:
    """The readings of all replicas."""

    def __init__(self, redis: Redis, *, lease_s: float, clock: Callable[[], float]) -> None:
        self._redis = redis
        self._lease_s = lease_s
        self._lease_ms = round(lease_s * 1000)
        self._clock = clock

    async def begin(self, key: AdapterKey, terms: Terms) -> Reading | None:
        """Begin to read; None when another reads for the same name."""
        reading = Reading(key, terms, uuid.uuid4().hex, self._clock())
        text = json.dumps(asdict(terms))
        began = await _BEGIN.run(self._redis, _HASH, (str(key), reading.reader, text, self._lease_ms))
        return reading if began else None

    async def take(self) -> Reading | None:
        """Take up a reading whose reader is gone; None when there is none."""
        reader, asked_s = uuid.uuid4().hex, self._clock()
        taken = await _TAKE.run(self._redis, _HASH, (reader, self._lease_ms))
        if not taken:
            return None
        tenant, _, name = taken[0].partition("/")
        fields = json.loads(taken[1])
        terms = Terms(**{name: fields[name] for name in Terms.__slots__})
        return Reading(AdapterKey(tenant, name), terms, reader, asked_s)

    async def end(self, reading: Reading) -> None:
        """The registration has come to its end."""
        await _END.run(self._redis, _HASH, (str(reading.key), reading.reader))

    async def hold(self, reading: Reading, work: Awaitable[_Result]) -> _Result:
        """Do the work under the lease; raise ReadingLost, with the work cancelled, when the lease ends."""
        working, renewing = asyncio.ensure_future(work), asyncio.create_task(self._renew(reading))
        try:
            await asyncio.wait({working, renewing}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ReadingLost(str(reading.key))
            return working.result()
        finally:
            working.cancel()
            renewing.cancel()

    async def _renew(self, reading: Reading) -> None:
        """Renew for as long as the reading is this reader's."""
        until_s = reading.asked_s + self._lease_s
        while (left_s := until_s - self._clock()) > 0:
            await asyncio.sleep(min(left_s, self._lease_s / RENEWALS_PER_LEASE))
            asked_s = self._clock()
            try:
                async with asyncio.timeout(max(0.0, until_s - asked_s)):
                    mine = await _RENEW.run(
                        self._redis, _HASH, (str(reading.key), reading.reader, self._lease_ms)
                    )
            except (StoreUnavailable, TimeoutError):
                continue  # it may be renewed yet: `until_s` stays
            if not mine:
                return
            until_s = asked_s + self._lease_s
