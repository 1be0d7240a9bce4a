"""GrantKeys: the keys that sign grants, which all replicas share and which change on schedule.

Owns making, announcing and dropping them; knows nothing of what a grant says. A key is announced to
the workers before it signs anything, signs for its life, and is accepted a little longer, until the
last grant that it signed has expired; it is kept for ten lives, because word of a request comes when
that ends. Invariant: a key that signs is one that every worker has had the time to learn, whichever
replica signs and whichever has the worker's stream.

Private keys are as safe as Redis is: whoever can write there can register adapters, limits and API
keys anyway.
"""

import asyncio
import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from redis.asyncio import Redis

from control_plane.errors import StoreUnavailable
from control_plane.store import keys
from control_plane.store.script import Script

KEPT_LIVES = 10
_READ = Script(Path(__file__).with_name("lua") / "grant_keys.lua")
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """How long keys live. All replicas of one Redis have the same."""

    life_s: float  # a key signs for so long
    announce_s: float  # and is known to workers so long before
    accept_s: float  # and so long after: no less than a grant lives
    refresh_s: float  # how often a replica looks

    @classmethod
    def every(cls, life_s: float, *, grant_ttl_s: float, worker_lease_s: float) -> Self:
        """Return the times that follow from a key's life.

        A replica is behind Redis by at most a refresh, and a worker behind its replica by less than
        a lease: a key is announced for two refreshes and a lease, and accepted for a refresh longer
        than the last grant of it can live.
        """
        refresh_s = min(5.0, life_s / 10)
        return cls(
            life_s=life_s,
            announce_s=2 * refresh_s + worker_lease_s,
            accept_s=grant_ttl_s + 2 * refresh_s,
            refresh_s=refresh_s,
        )


@dataclass(frozen=True, slots=True)
class GrantKey:
    """One key."""

    key_id: str  # follows from the key
    private: Ed25519PrivateKey = field(repr=False)
    public_pem: str  # verifies the grants that it signed


class GrantKeys:
    """The keys as this replica last read them."""

    def __init__(
        self,
        redis: Redis,
        rotation: Rotation,
        *,
        make: Callable[[], Ed25519PrivateKey] = Ed25519PrivateKey.generate,
    ) -> None:
        self._redis = redis
        self._rotation = rotation
        self._make = make
        self._keys: dict[str, GrantKey] = {}  # oldest first
        self._accepted: tuple[GrantKey, ...] = ()
        self._signing: GrantKey | None = None

    @property
    def signing(self) -> GrantKey:
        """The key that signs now; raise StoreUnavailable before the first was read."""
        if self._signing is None:
            raise StoreUnavailable("the keys that sign grants were not read yet")
        return self._signing

    def public(self) -> tuple[tuple[str, str], ...]:
        """Return key id and PEM of every key that workers must accept: the previous one, this, the next."""
        return _public(self._accepted)

    def known(self) -> tuple[tuple[str, str], ...]:
        """Return the same of every key that is kept."""
        return _public(self._keys.values())

    async def refresh(self) -> None:
        """Read the keys; make the next one when it is time. Raises StoreUnavailable."""
        rotation = self._rotation
        times = (rotation.life_s, rotation.announce_s, KEPT_LIVES * rotation.life_s + rotation.accept_s)
        now_ms, *members = await _READ.run(
            self._redis, (keys.ACCESS_GRANT_KEYS,), (_member(self._make()), *map(_ms, times))
        )
        stored, begins_ms = members[::2], [int(score) for score in members[1::2]]
        present = [self._keys.get(member.partition(" ")[0]) or _key(member) for member in stored]
        self._keys = {key.key_id: key for key in present}
        # The newest that has begun signs; it was announced for long enough.
        index = max(bisect_right(begins_ms, int(now_ms)) - 1, 0)
        if self._signing is not None and self._signing != present[index]:
            _log.info("grants are signed with another key", key_id=present[index].key_id)
        self._signing = present[index]
        over_ms = int(now_ms) - _ms(rotation.accept_s)
        self._accepted = tuple(present[max(bisect_right(begins_ms, over_ms) - 1, 0) :])

    async def run(self) -> None:
        """Refresh until cancelled; while Redis is away the keys that were read go on."""
        while True:
            await asyncio.sleep(self._rotation.refresh_s)
            try:
                await self.refresh()
            except StoreUnavailable as error:
                _log.warning("keys of grants not refreshed", reason=str(error))


def _member(private: Ed25519PrivateKey) -> str:
    raw = private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return f"{hashlib.sha256(public).hexdigest()[:16]} {raw.hex()}"


def _key(member: str) -> GrantKey:
    key_id, _, private = member.partition(" ")
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(private))
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return GrantKey(key_id, key, pem.decode())


def _public(grant_keys: Iterable[GrantKey]) -> tuple[tuple[str, str], ...]:
    return tuple((key.key_id, key.public_pem) for key in grant_keys)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
