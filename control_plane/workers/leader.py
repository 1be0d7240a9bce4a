"""Leadership: which replica plans, and the token that fences off the ones that no longer do.

One lease in Redis. Every term has a higher fencing token than the one before; workers refuse
commands of a lower one. Invariant: a replica that could not renew in time stops leading before
its lease can have been taken by another, by its own clock.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
from redis.asyncio import Redis

from control_plane.errors import StoreUnavailable
from control_plane.store.script import Script
from control_plane.workers import keys

_LUA = Path(__file__).parent / "lua"
_CAMPAIGN = Script(_LUA / "campaign.lua")
_RESIGN = Script(_LUA / "resign.lua")
RENEWALS_PER_LEASE = 3
_log = structlog.get_logger(__name__)

Term = Callable[[int], Awaitable[None]]


class Leadership:
    """This replica's part in the choice of the leader."""

    def __init__(self, redis: Redis, *, replica: str, lease_s: float, clock: Callable[[], float]) -> None:
        self._redis = redis
        self._replica = replica
        self._lease_s = lease_s
        self._clock = clock
        self._token = 0
        self._leads = False
        self._leads_until = 0.0
        self._known = asyncio.Event()

    @property
    def token(self) -> int:
        """The highest fencing token that this replica has seen."""
        return self._token

    @property
    def leads(self) -> bool:
        """Whether this replica leads now."""
        return self._leads and self._clock() < self._leads_until

    async def known(self) -> None:
        """Wait until the token was read once: a worker would refuse a lease with a lower one."""
        await self._known.wait()

    async def run(self, term: Term) -> None:
        """Campaign until cancelled; `term(token)` runs while this replica leads, as long as it leads."""
        running: asyncio.Task[None] | None = None
        running_token = 0
        try:
            async with asyncio.TaskGroup() as tasks:
                while True:
                    await self._campaign()
                    if running is not None and not (self.leads and running_token == self._token):
                        _log.info("leadership lost", token=running_token)
                        running.cancel()
                        running = None
                    if running is None and self.leads:
                        _log.info("leadership won", token=self._token)
                        running_token = self._token
                        running = tasks.create_task(_run(term, running_token))
                    await asyncio.sleep(self._lease_s / RENEWALS_PER_LEASE)
        finally:
            await asyncio.shield(self._resign())

    async def _campaign(self) -> None:
        asked_at = self._clock()  # the lease in Redis ends later than this one counts
        try:
            async with asyncio.timeout(self._lease_s / RENEWALS_PER_LEASE):
                leads, token = await _CAMPAIGN.run(
                    self._redis,
                    (keys.LEADER, keys.FENCING_TOKEN),
                    (self._replica, round(self._lease_s * 1000)),
                )
        except (StoreUnavailable, TimeoutError) as error:
            _log.warning("leader's lease not renewed", reason=str(error) or "no answer in time")
            return
        self._leads, self._token = bool(leads), max(self._token, int(token))
        self._leads_until = asked_at + self._lease_s
        self._known.set()

    async def _resign(self) -> None:
        try:
            await _RESIGN.run(self._redis, (keys.LEADER,), (self._replica,))
        except StoreUnavailable as error:
            _log.info("leader's lease left to expire", reason=str(error))


async def _run(term: Term, token: int) -> None:
    await term(token)
