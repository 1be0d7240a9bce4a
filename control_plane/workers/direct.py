"""DirectRequests: requests that clients bring to workers by themselves, as their workers tell of them.

Owns the renewals of those that run on this replica's workers, and the closing of the accounts of those
that ended. Knows nothing of how they were admitted: all it needs is in the grant that comes back.
Invariant: an end is settled once, however often and to however many replicas it is told; of a
request that nobody tells of, the reservation expires.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from control_plane.access.direct_grants import DirectGrants
from control_plane.access.grants import Grant
from control_plane.errors import InvalidArgument, StoreUnavailable
from control_plane.quotas.service import Quotas
from control_plane.quotas.slots import Claim, Place, SlotClaims, Wish
from control_plane.quotas.types import Reservation
from protos.sync.v1 import sync_pb2 as sync

RENEWALS_PER_TTL = 3
NUM_SETTLERS = 8  # at once, so that Redis syncs its file once for several
MAX_WAITING = 4096  # ends; a worker tells again of one that was dropped
_log = structlog.get_logger(__name__)

Settled = Callable[[str], None]  # tells the worker that a request's account is closed


Ended = Callable[[Grant, sync.DirectUsage], Awaitable[None]]  # told once of each


async def _unheard(grant: Grant, usage: sync.DirectUsage) -> None:
    """Where nobody wants to know."""


@dataclass(frozen=True, slots=True)
class _End:
    grant: Grant
    usage: sync.DirectUsage
    settled: Settled


class DirectRequests:
    """Direct requests of this replica's workers."""

    def __init__(
        self,
        quotas: Quotas,
        slots: SlotClaims,
        grants: DirectGrants,
        *,
        reservation_ttl_s: float,
        ended: Ended = _unheard,
    ) -> None:
        self._quotas = quotas
        self._slots = slots
        self._grants = grants
        self._tell_ended = ended
        self._renew_every_s = reservation_ttl_s / RENEWALS_PER_TTL
        self._running: dict[str, dict[str, Grant]] = {}  # session → as it came → what it says
        self._ended: asyncio.Queue[_End] = asyncio.Queue(MAX_WAITING)

    def hear(self, session: str, worker_id: str, told: sync.DirectRequest, settled: Settled) -> None:
        """Take what a session's worker says of one request."""
        running = self._running.setdefault(session, {})
        try:
            # Read once: the key that signed it may be gone when a long request ends.
            grant = running.pop(told.grant, None) or self._grants.read(told.grant, worker_id=worker_id)
        except InvalidArgument as error:
            _log.warning("word of a direct request refused", worker_id=worker_id, reason=str(error))
            return
        if not told.HasField("usage"):
            running[told.grant] = grant
            return
        try:
            self._ended.put_nowait(_End(grant, told.usage, settled))
        except asyncio.QueueFull:
            _log.warning("too many ends at once: to be told again", request_id=grant.request_id)

    def leave(self, session: str) -> None:
        """A session ended: whoever has the worker's next one renews what still runs."""
        self._running.pop(session, None)

    async def run(self) -> None:
        """Renew and settle until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._renew())
            for _ in range(NUM_SETTLERS):
                tasks.create_task(self._settle_all())

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._renew_every_s)
            for grant in [grant for running in self._running.values() for grant in running.values()]:
                try:
                    await self._quotas.renew(_reservation(grant))
                    if (claim := _claim(grant)) is not None:
                        await self._slots.renew(claim)
                except StoreUnavailable as error:
                    _log.warning("reservation not renewed", reason=str(error))

    async def _settle_all(self) -> None:
        while True:
            end = await self._ended.get()
            try:
                await self._settle(end.grant, end.usage)
            except StoreUnavailable as error:
                _log.warning("usage not settled: to be told again", reason=str(error))
            else:
                end.settled(end.grant.request_id)

    async def _settle(self, grant: Grant, usage: sync.DirectUsage) -> None:
        first = await self._quotas.settle(_reservation(grant), usage.prompt_tokens, usage.completion_tokens)
        if not first:
            return  # what follows was done then, too
        cold = _was_cold(grant, usage)
        if cold and grant.adapter is not None:
            await self._slots.count_cold_load(grant.adapter.tenant)
        if (claim := _claim(grant)) is not None:
            await self._slots.end(claim, cold=cold)
        await self._tell_ended(grant, usage)


def _reservation(grant: Grant) -> Reservation:
    adapter = grant.adapter
    return Reservation(
        tenant=grant.tenant,
        request_id=grant.request_id,
        tokens=grant.max_tokens,
        # Another tenant's adapter has limits of its own, but not for this tenant's requests.
        adapter=adapter.name if adapter is not None and adapter.tenant == grant.tenant else "",
    )


def _was_cold(grant: Grant, usage: sync.DirectUsage) -> bool | None:
    """Whether a load was made for the request; None: it needed none, or never came to need it."""
    if grant.direct is not None and grant.direct.loads:
        return True  # however warm the adapter was by the time that the request arrived
    return usage.cold if usage.HasField("cold") else None


def _claim(grant: Grant) -> Claim | None:
    """The slot that was claimed for the request, if one was."""
    adapter, terms = grant.adapter, grant.direct
    if adapter is None or terms is None or terms.cold_load_charged is None:
        return None
    wish = Wish(
        owner=adapter.tenant,
        adapter=adapter.name,
        place=Place(grant.worker_id, adapter.digest),
        request_id=grant.request_id,
        cold=terms.cold_load_charged,
    )
    return Claim(wish, charged=terms.cold_load_charged)
