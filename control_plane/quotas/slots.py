"""SlotClaims: which slots a tenant's adapters take, and the loads that fill them.

Owns the claims of running requests; the scripts in `lua/` decide, on Redis' clock. Slots and loads
are charged to the adapter's owner, whoever asks for it. What workers report is late by some
milliseconds, so what counts is the union of reports and claims. Invariant: with a limit of n, no
n + 1 slots are ever claimed or reported by what was admitted.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis

from control_plane.errors import QuotaExceeded
from control_plane.quotas.types import Limits
from control_plane.store import keys
from control_plane.store.script import Script

LUA = Path(__file__).with_name("lua")
# When another request will leave its slot is not known; its client may as well ask again soon.
FULL_RETRY_S = 1.0
# Until every replica has heard where the adapter of a request that ended is now.
AFTERLIFE_S = 2.0


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A slot of a worker by what is in it."""

    worker_id: str
    digest: str

    def __str__(self) -> str:
        return f"{self.worker_id} {self.digest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A slot that a request needs, and what its owner holds now according to the workers."""

    owner: str
    adapter: str
    place: Place
    request_id: str
    cold: bool  # filling the slot takes a load from disk or source
    resident: Collection[Place] = ()  # of all the owner's adapters
    resident_of_adapter: Collection[Place] = ()
    vacated: Place | None = None  # evicted just now: no moment's grace for it


@dataclass(frozen=True, slots=True)
class Claim:
    """A slot that a request may use."""

    wish: Wish
    charged: bool  # a cold load


class SlotsFull(Exception):
    """Every slot of the tenant (or of one adapter) is taken; `running` are those that requests use now.

    Never leaves admission: either room is made, or the caller gets `refusal`.
    """

    def __init__(self, tenant: str, maximum: int, running: frozenset[Place], *, of_adapter: bool) -> None:
        super().__init__(f"{maximum} slots")
        self.refusal = QuotaExceeded(tenant, "resident_slots", maximum, FULL_RETRY_S if maximum else None)
        self.running = running
        self.of_adapter = of_adapter


class SlotClaims:
    """The claims of all tenants."""

    def __init__(self, redis: Redis, defaults: Limits, ttl_s: float) -> None:
        self._redis = redis
        self._defaults = defaults.arguments()
        self._ttl_ms = round(ttl_s * 1000)
        self._claim, self._unclaim = (
            Script(LUA / "scope.lua", LUA / file) for file in ("claim.lua", "unclaim.lua")
        )

    async def claim(self, wish: Wish) -> Claim:
        """Claim the slot; raise SlotsFull, or QuotaExceeded for one cold load too many."""
        reply = await self._claim.run(
            self._redis,
            _keys(wish),
            (
                *(str(wish.place), wish.request_id, self._ttl_ms, int(wish.cold)),
                *self._defaults,
                str(wish.vacated or ""),
                len(wish.resident),
                *map(str, wish.resident),
                *map(str, wish.resident_of_adapter),
            ),
        )
        match reply:
            case ["OVER", "resident_slots", maximum, whose, *running]:
                places = frozenset(Place(*one.split(" ", 1)) for one in running)
                raise SlotsFull(wish.owner, int(maximum), places, of_adapter=whose == "adapter")
            case ["OVER", limit, maximum, wait_us]:
                wait_s = int(wait_us) / 1e6 if wait_us else None
                raise QuotaExceeded(wish.owner, limit, int(maximum), wait_s)
        return Claim(wish, bool(reply[1]))

    async def renew(self, claim: Claim) -> bool:
        """Extend a long request's claim; False when it has expired."""
        return bool(await self._change(claim, "renew", self._ttl_ms, 0))

    async def end(self, claim: Claim, *, cold: bool | None) -> None:
        """End a claim. `cold` is how the adapter was really found; None: it never was."""
        back = int(claim.charged) - int(bool(cold))
        await self._change(claim, "end", round(AFTERLIFE_S * 1000), back)

    async def count_cold_load(self, owner: str) -> None:
        """Count a load of one of the owner's adapters in its usage."""
        await self._redis.hincrby(keys.quota_totals(owner), "cold_loads", 1)

    async def _change(self, claim: Claim, what: str, ttl_ms: int, back: int) -> int:
        wish = claim.wish
        changed: int = await self._unclaim.run(
            self._redis,
            _keys(wish),
            (str(wish.place), wish.request_id, ttl_ms, what, *self._defaults, back),
        )
        return changed


def _keys(wish: Wish) -> tuple[str, ...]:
    return (*keys.quota_slots(wish.owner), *keys.quota_slots(wish.owner, wish.adapter))
