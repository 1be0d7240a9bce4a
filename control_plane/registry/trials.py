"""Trials: how requests of canaries and of their stable revisions went, over all replicas.

Owns the sliding windows in Redis and the rolling back. Knows nothing of requests but how they
ended. What is noted here is statistics: a replica that dies, a full line or an outage of Redis
loses some of it and nothing else. Invariant: whichever replica's note makes the window decide,
the canary is rolled back once.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import structlog
from redis.asyncio import Redis

from control_plane.errors import NotFound, StoreUnavailable
from control_plane.registry.canary import Arm, verdict
from control_plane.registry.service import Registry
from control_plane.registry.types import Adapter, Canary, Target
from control_plane.store import keys
from control_plane.store.script import Script

LUA = Path(__file__).with_name("lua")
MAX_NOTED = 4096  # requests that wait to be written
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Ending:
    """How one request went."""

    failed: bool
    first_token_s: float | None  # loading the adapter not included; None: it got no token


class Trials:
    """The windows of all canaries."""

    def __init__(self, redis: Redis, registry: Registry) -> None:
        self._redis = redis
        self._registry = registry
        self._script = Script(LUA / "trial.lua")
        self._noted: asyncio.Queue[tuple[Target, Ending]] = asyncio.Queue(MAX_NOTED)

    def note(self, target: Target, ending: Ending) -> None:
        """Note how a request went; one that is part of no trial is forgotten at once."""
        if _arm(target) is not None and not self._noted.full():
            self._noted.put_nowait((target, ending))

    async def run(self) -> None:
        """Write what is noted, until cancelled."""
        while True:
            target, ending = await self._noted.get()
            try:
                await self.record(target, ending)
            except (StoreUnavailable, NotFound) as error:  # NotFound: deleted since
                _log.info("a request of a canary not counted", reason=str(error))

    async def record(self, target: Target, ending: Ending) -> None:
        """Count a request, and roll its canary back when the window says so."""
        arm, adapter = _arm(target), target.adapter
        if arm is None or adapter is None or adapter.canary is None:
            return
        stable, trial = await self._count(adapter, adapter.canary, arm, ending)
        reason = verdict(adapter.canary, stable, trial)
        if reason is not None:
            _log.warning("canary rolled back", adapter=str(adapter.key), reason=reason)
            await self._registry.roll_back_canary(adapter.key, adapter.canary, reason)

    async def _count(self, adapter: Adapter, canary: Canary, arm: str, ending: Ending) -> tuple[Arm, Arm]:
        first_token_us = "" if ending.first_token_s is None else round(ending.first_token_s * 1e6)
        counts = await self._script.run(
            self._redis,
            (keys.registry_trial(str(adapter.key), f"{canary.revision}-{round(canary.start_s * 1e6)}"),),
            (arm, int(ending.failed), first_token_us, round(canary.window_s * 1000)),
        )
        return _decode(counts[:4]), _decode(counts[4:])


def _arm(target: Target) -> str | None:
    """Which side of a trial the target is on."""
    adapter, revision = target.adapter, target.revision
    if adapter is None or revision is None or adapter.canary is None:
        return None
    return {adapter.canary.revision: "trial", adapter.current_revision: "stable"}.get(revision.number)


def _decode(counts: list[int]) -> Arm:
    requests, failed, first_tokens, first_token_us = counts
    return Arm(
        requests=requests,
        failed=failed,
        first_tokens=first_tokens,
        first_token_sum_s=first_token_us / 1e6,
    )
