"""Admission: a request's reservation, from its admission to its one settlement.

Owns the reservations of this replica's running requests: renews them while they run, settles each
exactly once however its request ends. What this process cannot settle any more (it died, or Redis
is away) expires by itself.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog

from control_plane.api.meter import Meter
from control_plane.errors import StoreUnavailable
from control_plane.quotas.local_share import LocalShare
from control_plane.quotas.service import Quotas
from control_plane.quotas.slots import Claim, SlotClaims
from control_plane.quotas.types import Reservation

RENEWALS_PER_TTL = 3
_log = structlog.get_logger(__name__)


class Admitted:
    """One admitted request, and the slot it claimed."""

    def __init__(
        self, quotas: Quotas, slots: SlotClaims, reservation: Reservation, meter: Meter, *, owner: str
    ) -> None:
        self._quotas = quotas
        self._slots = slots
        self.reservation = reservation
        self.meter = meter
        self._owner = owner  # of its adapter; empty: the base model
        self._claim: Claim | None = None
        self._settling: asyncio.Task[None] | None = None

    async def hold(self, claim: Claim | None) -> None:
        """Take a claim in place of the one before, whose worker did not take the request."""
        before, self._claim = self._claim, claim
        # The same place claimed again is one claim.
        if before is not None and (claim is None or claim.wish.place != before.wish.place):
            await self._slots.end(before, cold=None)

    async def renew(self) -> None:
        """Extend what it holds."""
        await self._quotas.renew(self.reservation)
        if self._claim is not None:
            await self._slots.renew(self._claim)

    async def settle(self) -> None:
        """Settle what the meter says, or release when nothing was computed; again: wait for the first."""
        if self._settling is None:
            self._settling = asyncio.create_task(self._settle())
        # Shielded: a client that leaves cancels its call, not the account of it.
        await asyncio.shield(self._settling)

    async def _settle(self) -> None:
        if self.reservation.local:
            return  # nobody else knows of it
        try:
            if self.meter.started:
                await self._quotas.settle(
                    self.reservation, self.meter.prompt_tokens, self.meter.completion_tokens
                )
            else:
                await self._quotas.release(self.reservation)
            if self.meter.cold and self._owner:
                await self._slots.count_cold_load(self._owner)
            if self._claim is not None:
                await self._slots.end(self._claim, cold=self.meter.cold)
        except StoreUnavailable as error:
            _log.warning("usage not settled: the reservation will expire", reason=str(error))


class Admission:
    """The admitted requests of this replica.

    While Redis is away nothing is admitted, or the local share if there is one.
    """

    def __init__(
        self,
        quotas: Quotas,
        slots: SlotClaims,
        *,
        reservation_ttl_s: float,
        local_share: LocalShare | None = None,
        first_token: Callable[[float], object] = lambda seconds: None,
    ) -> None:
        self._quotas = quotas
        self._slots = slots
        self._local_share = local_share
        self._first_token = first_token  # told of each request's, for metrics
        self._renew_every_s = reservation_ttl_s / RENEWALS_PER_TTL
        self._running: set[Admitted] = set()
        self._one_ended = asyncio.Event()

    @asynccontextmanager
    async def admit(
        self,
        tenant: str,
        request_id: str,
        meter: Meter,
        *,
        completion_tokens: int,
        adapter: str = "",
        owner: str = "",
    ) -> AsyncIterator[Admitted]:
        """Reserve the worst case for the time of the block; raise QuotaExceeded.

        `adapter` is one of the tenant's own, for limits of its own; `owner` whose the adapter is.
        """
        tokens = meter.prompt_tokens + completion_tokens
        reservation = await self._reserve(tenant, request_id, tokens, adapter)
        admitted = Admitted(self._quotas, self._slots, reservation, meter, owner=owner)
        self._running.add(admitted)
        try:
            yield admitted
        finally:
            if meter.first_token_s is not None:
                self._first_token(meter.first_token_s)
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

    async def _reserve(self, tenant: str, request_id: str, tokens: int, adapter: str) -> Reservation:
        try:
            return await self._quotas.reserve(tenant, request_id, tokens, adapter)
        except StoreUnavailable:
            if self._local_share is None:
                raise
            return self._local_share.admit(tenant, request_id, tokens, adapter)

    async def _renew(self, admitted: Admitted) -> None:
        try:
            if admitted in self._running:
                await admitted.renew()
        except StoreUnavailable as error:
            _log.warning("reservation not renewed", reason=str(error))
