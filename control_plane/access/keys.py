"""Keys: API keys, and who holds one.

Owns issuing, checking and revoking; knows nothing of what a role may do. A key is
`lp_<key id>_<random>`: the id finds the stored hash, the random part proves the key. Invariant:
Redis never holds what would let its reader call the API.

The hash is plain SHA-256. Slow, salted hashes defend guessable passwords; there is nothing to
guess in 256 random bits, and a slow hash would only be paid by every call.
"""

import hashlib
import hmac
import json
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from control_plane.access.types import Identity, IssuedKey, KeyInfo, Role
from control_plane.errors import InvalidArgument, NameTaken, NotFound, StoreUnavailable, Unauthenticated
from control_plane.registry.names import check_length, check_name
from control_plane.store import keys
from control_plane.store.script import Script

CACHE_TTL_S = 5.0  # a revoked key may work this long on other replicas
MAX_CACHED = 10_000
MAX_NAME_CHARACTERS = 256  # all keys are listed at once
MAX_GRACE_S = 30 * 24 * 3600.0
ID_BYTES, RANDOM_BYTES = 8, 32
_SECRET = re.compile(r"lp_([a-z0-9]{4,32})_([A-Za-z0-9_-]{32,128})")
_TENANT_ROLES = frozenset({Role.TENANT_ADMIN, Role.INFERENCE})
_REPLACE = Script(Path(__file__).with_name("lua") / "replace.lua")


@dataclass(frozen=True, slots=True)
class _Known:
    """A key that was checked, and until when (on the local clock) it need not be checked again."""

    identity: Identity
    until: float
    expires_s: float  # Unix time; 0: never


class Keys:
    """The API keys of all tenants."""

    def __init__(
        self,
        redis: Redis,
        *,
        outage_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._redis = redis
        self._outage_s = outage_s  # how long a key that was checked works on while Redis is away
        self._clock = clock
        self._now = now
        self._random_bytes = random_bytes
        self._cache: OrderedDict[str, _Known] = OrderedDict()  # by hash

    async def create(
        self, role: Role, tenant: str = "", name: str = "", secret: str | None = None
    ) -> IssuedKey:
        """Issue a key; with `secret`, register that one (the same again is the same key).

        Raises InvalidArgument (role and tenant do not fit, or the secret has another form) and
        NameTaken (the secret's id belongs to another key).
        """
        _check_tenant(role, tenant)
        check_length("description", name, MAX_NAME_CHARACTERS)
        secret = secret or self._new_secret()
        match = _SECRET.fullmatch(secret)
        if match is None:  # the message must not repeat it
            raise InvalidArgument(
                "secret", "***", "must be lp_<4 to 32 of a-z0-9>_<at least 32 random characters>"
            )
        identity = Identity(match[1], tenant, role)
        record = {"hash": _hash(secret), "role": role.value, "tenant": tenant, "name": name}
        stored = json.dumps(record | {"created_s": float((await self._redis.time())[0])})
        if not await self._redis.hsetnx(keys.ACCESS_KEYS, identity.key_id, stored):
            present = await self._find(identity.key_id) or {}
            if any(present.get(field) != record[field] for field in ("hash", "role", "tenant")):
                raise NameTaken("key", identity.key_id, "exists with another secret, role or tenant")
        return IssuedKey(identity, secret)

    async def authenticate(self, secret: str) -> Identity:
        """Return who holds this key; raise Unauthenticated."""
        match = _SECRET.fullmatch(secret)
        if match is None:
            raise Unauthenticated("no valid API key")
        digest = _hash(secret)
        known = self._cache.get(digest)
        if known is None or known.until <= self._clock():
            known = await self._check(match[1], digest, known)
        if known.expires_s and known.expires_s <= self._now():
            raise Unauthenticated("no valid API key")
        return known.identity

    async def _check(self, key_id: str, digest: str, known: _Known | None) -> _Known:
        """Compare with what is stored; while Redis is away, what was known goes on for a while."""
        try:
            record = await self._find(key_id)
        except StoreUnavailable:
            if known is not None and known.until + self._outage_s > self._clock():
                return known
            raise
        # Compared in constant time, so that no answer's delay tells how much of a hash was right.
        if record is None or not hmac.compare_digest(record["hash"], digest):
            raise Unauthenticated("no valid API key")
        identity = Identity(key_id, record["tenant"], Role(record["role"]))
        checked = _Known(identity, self._clock() + CACHE_TTL_S, record.get("expires_s", 0.0))
        self._remember(digest, checked)
        # Once a cache's life for each replica, not once a call.
        await self._redis.hset(keys.ACCESS_USED, key_id, str(self._now()))
        return checked

    async def revoke(self, key_id: str) -> None:
        """Make a key worthless: here at once, on other replicas within CACHE_TTL_S. Raises NotFound."""
        if not await self._redis.hdel(keys.ACCESS_KEYS, key_id):
            raise NotFound("key", key_id)
        await self._redis.hdel(keys.ACCESS_USED, key_id)
        self._forget(key_id)

    async def rotate(self, key_id: str, grace_s: float = 0.0) -> IssuedKey:
        """Issue a successor of the same role and tenant; the old key works for the grace, no longer.

        Raises NotFound, and NameTaken when the key is being changed by somebody else.
        """
        if not 0 <= grace_s <= MAX_GRACE_S:
            raise InvalidArgument("grace_s", grace_s, f"must be between 0 and {MAX_GRACE_S:g}")
        stored: Any = await self._redis.hget(keys.ACCESS_KEYS, key_id)
        if not stored:
            raise NotFound("key", key_id)
        record = json.loads(stored)
        # The successor first: a rotation that is cut off leaves a key too many, not one too few.
        issued = await self.create(Role(record["role"]), record["tenant"], record["name"])
        ending = json.dumps(record | {"expires_s": self._now() + grace_s})
        if not await _REPLACE.run(self._redis, (keys.ACCESS_KEYS,), (key_id, stored, ending)):
            await self.revoke(issued.identity.key_id)
            raise NameTaken("key", key_id, "was changed at the same time")
        self._forget(key_id)
        return issued

    async def list(self) -> tuple[KeyInfo, ...]:
        """Return all keys, oldest first."""
        stored: Any = await self._redis.hgetall(keys.ACCESS_KEYS)
        used: Any = await self._redis.hgetall(keys.ACCESS_USED)
        infos = (
            _info(key_id, json.loads(text), float(used.get(key_id, 0))) for key_id, text in stored.items()
        )
        return tuple(sorted(infos, key=lambda info: (info.created_s, info.identity.key_id)))

    async def _find(self, key_id: str) -> dict[str, Any] | None:
        stored: Any = await self._redis.hget(keys.ACCESS_KEYS, key_id)
        return json.loads(stored) if stored else None

    def _remember(self, digest: str, known: _Known) -> None:
        self._cache[digest] = known
        self._cache.move_to_end(digest)
        while len(self._cache) > MAX_CACHED:
            self._cache.popitem(last=False)

    def _forget(self, key_id: str) -> None:
        for digest in [digest for digest, known in self._cache.items() if known.identity.key_id == key_id]:
            del self._cache[digest]

    def _new_secret(self) -> str:
        return f"lp_{self._random_bytes(ID_BYTES).hex()}_{self._random_bytes(RANDOM_BYTES).hex()}"


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _info(key_id: str, record: dict[str, Any], last_use_s: float) -> KeyInfo:
    identity = Identity(key_id, record["tenant"], Role(record["role"]))
    return KeyInfo(identity, record["name"], record["created_s"], last_use_s, record.get("expires_s", 0.0))


def _check_tenant(role: Role, tenant: str) -> None:
    if role in _TENANT_ROLES:
        check_name("tenant", tenant)
    elif tenant:
        raise InvalidArgument("tenant", tenant, f"must be empty for the role {role.value}")
