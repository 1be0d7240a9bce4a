"""Admission: a request's reservation, from its admission to its one settlement.

Owns the reservations of this replica's running requests: renews them while they run, settles each
exactly once however its request ends. What this process cannot settle any more (it died, or Redis
is away) expires by itself.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog

from control_plane.api.meter import Meter
from control_plane.errors import StoreUnavailable
from control_plane.quotas.service import Quotas
from control_plane.quotas.types import Reservation

RENEWALS_PER_TTL = 3
_log = structlog.get_logger(__name__)


class Admitted:
    """One admitted request."""

    def __init__(self, quotas: Quotas, reservation: Reservation, meter: Meter) -> None:
        self._quotas = quotas
        self.reservation = reservation
        self.meter = meter
        self._settling: asyncio.Task[None] | None = None

    async def settle(self) -> None:
        """Settle what the meter says, or release when nothing was computed; again: wait for the first."""
        if self._settling is None:
            self._settling = asyncio.create_task(self._settle())
        # Shielded: a client that leaves cancels its call, not the account of it.
        await asyncio.shield(self._settling)

    async def _settle(self) -> None:
        try:
            if self.meter.started:
                await self._quotas.settle(
                    self.reservation, self.meter.prompt_tokens, self.meter.completion_tokens
                )
            else:
                await self._quotas.release(self.reservation)
        except StoreUnavailable as error:
            _log.warning("usage not settled: the reservation will expire", reason=str(error))


class Admission:
    """The admitted requests of this replica."""

    def __init__(self, quotas: Quotas, *, reservation_ttl_s: float) -> None:
        self._quotas = quotas
        self._renew_every_s = reservation_ttl_s / RENEWALS_PER_TTL
        self._running: set[Admitted] = set()
        self._one_ended = asyncio.Event()

    @asynccontextmanager
    async def admit(
        self, tenant: str, request_id: str, meter: Meter, *, completion_tokens: int, adapter: str = ""
    ) -> AsyncIterator[Admitted]:
        """Reserve the worst case for the time of the block; raise QuotaExceeded.

        `adapter` is one of the tenant's own, for limits of its own.
        """
        tokens = meter.prompt_tokens + completion_tokens
        reservation = await self._quotas.reserve(tenant, request_id, tokens, adapter)
        admitted = Admitted(self._quotas, reservation, meter)
        self._running.add(admitted)
        try:
            yield admitted
        finally:
            try:
                await admitted.settle()
            finally:
                self._running.discard(admitted)
                self._one_ended.set()

    async def idle(self) -> None:
        """Wait until no request runs."""
        while self._running:
            self._one_ended.clear()
            await self._one_ended.wait()

    async def run(self) -> None:
        """Renew what runs, until cancelled."""
        while True:
            await asyncio.sleep(self._renew_every_s)
            for admitted in tuple(self._running):
                await self._renew(admitted)

    async def _renew(self, admitted: Admitted) -> None:
        try:
            if admitted in self._running:
                await self._quotas.renew(admitted.reservation)
        except StoreUnavailable as error:
            _log.warning("reservation not renewed", reason=str(error))
